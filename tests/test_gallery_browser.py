"""The gallery page in a real browser: what a user types, sees, drops and presses; and that nothing breaks its policy."""

from __future__ import annotations

import json
import shutil
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from selenium import webdriver
from selenium.common.exceptions import JavascriptException, NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from chiasm.search import Store
from chiasm.serve.app import create_app
from chiasm.serve.server import bind
from chiasm.serve.test_app import COLORS, STRANGE_NAME, make_store, png

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1280,900",
]
TOKEN = "a-token-that-is-long"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium and chromedriver"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("gallery")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHIASM_CACHE", str(folder / "cache"))
        with make_store(folder) as store:
            yield store


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


def serve(store: Store, **options: Any) -> tuple[str, Callable[[], None]]:
    """Starts a server in a thread; returns its address and what stops it."""
    listening = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(create_app(store, **options), log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join(10)

    return f"http://127.0.0.1:{listening.getsockname()[1]}", stop


@pytest.fixture(scope="module")
def address(store: Store) -> Iterator[str]:
    address, stop = serve(store)
    yield address
    stop()


class Page:
    """The gallery as a user sees it."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver, self.address = driver, address

    def open(self, path: str = "/") -> Page:
        self.driver.get(self.address + path)
        self.until(lambda: self.find("#filters").is_displayed() and self.idle())
        return self

    def find(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def until(self, true: Callable[[], Any]) -> Any:
        passing = (StaleElementReferenceException, NoSuchElementException)
        return WebDriverWait(self.driver, 15, 0.05, ignored_exceptions=passing).until(lambda _: true())

    def idle(self) -> bool:
        return self.find("#results").get_attribute("aria-busy") == "false"

    def search(self, words: str) -> None:
        box = self.find("#q")
        box.clear()
        box.send_keys(words, Keys.ENTER)
        self.until(lambda: f"q={words.split()[0]}" in self.driver.current_url and self.idle())

    def names(self) -> list[str]:
        return [element.text for element in self.all(".hit .name")]

    def focused(self) -> Any:
        return self.driver.switch_to.active_element

    def press(self, *keys: str) -> None:
        for key in keys:
            self.focused().send_keys(key)

    def seen(self, selector: str) -> bool:
        return any(element.is_displayed() for element in self.all(selector))


@pytest.fixture
def page(driver: Any, address: str) -> Iterator[Page]:
    driver.get_log("browser")
    yield Page(driver, address).open()
    # A violation of the content security policy and an error of a script are both logged here.
    messages = [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert not messages


def test_words_bring_hits_with_pictures_and_relevance(page: Page) -> None:
    assert page.focused().get_attribute("id") == "q"
    page.search("something blue")
    assert page.names()[0] == "blue.png"
    assert page.driver.title.startswith("something blue")
    assert "1 likely hit," in page.find("#status").text
    number = page.find(".hit .number").text
    assert 50 <= int(number.split()[0]) <= 100
    first = page.find(".hit img")
    page.until(lambda: page.driver.execute_script("return arguments[0].naturalWidth", first) == 64)
    assert "blue.png" in first.get_attribute("alt")
    bar = page.find(".hit .fill")
    assert bar.size["width"] == pytest.approx(
        page.find(".hit .track").size["width"] * int(number.split()[0]) / 100, abs=2
    )


def test_the_filter_keeps_one_kind(page: Page) -> None:
    page.search("yellow")
    counts = {chip.text.split("\n")[0]: chip for chip in page.all(".chip")}
    assert {"All", "Pictures", "Text"} <= {name.split(" ")[0] for name in counts}
    page.find('.chip[data-modality="text"]').click()
    page.until(lambda: len(page.all(".hit")) == len(page.all(".hit.text")) == 1)
    assert "modality=text" in page.driver.current_url
    page.driver.back()
    page.until(lambda: page.names() and page.names()[0] == "yellow.png")
    page.driver.refresh()
    page.until(lambda: page.names() and page.names()[0] == "yellow.png")


def test_a_filter_chosen_before_the_search_keeps_what_was_typed(page: Page) -> None:
    page.press("yellow")
    page.find('.chip[data-modality="text"]').click()
    assert page.focused().get_attribute("value") == "yellow"
    page.press(Keys.ENTER)
    page.until(lambda: len(page.all(".hit")) == len(page.all(".hit.text")) == 1)


def test_hostile_names_and_texts_are_shown_as_they_are(page: Page) -> None:
    page.search("yellow")
    page.until(lambda: page.seen(".hit.text .excerpt"))
    assert STRANGE_NAME in page.names()
    texts = page.find(".hit.text").text
    assert "alert('x')" in texts
    assert not page.all(".hit b, .hit script, .hit img[onerror]")
    for element in page.all(".hit"):
        if STRANGE_NAME in element.text:
            element.find_element(By.CSS_SELECTOR, ".open").click()
    page.until(lambda: page.seen("#detail"))
    assert page.find("#detail-name").text == STRANGE_NAME
    page.press(Keys.ESCAPE)


def test_nothing_here_and_the_nearest_anyway(page: Page) -> None:
    page.search("violin")
    page.until(lambda: page.seen("#nothing"))
    assert "Nothing here" in page.find("#nothing").text
    assert "violin" in page.find("#nothing").text
    assert not page.all(".hit")
    page.find("#anyway").click()
    page.until(lambda: len(page.all(".hit")) > 3)
    assert not page.seen("#nothing")
    assert "None of them is a likely match" in page.find("#status").text
    assert "nearest" in page.driver.current_url
    page.search("blue")
    assert not page.seen("#nothing")
    assert page.names()[0] == "blue.png"


def test_a_picture_is_a_query(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "my picture.png"
    file.write_bytes(png(COLORS["green"]))
    page.find("#file").send_keys(str(file))
    page.until(lambda: page.names() and page.names()[0] == "green.png")
    assert page.find("#by-name").text == "my picture.png"
    page.find('.chip[data-modality="image"]').click()
    page.until(lambda: page.idle() and not page.all(".hit.text"))
    assert page.names()[0] == "green.png"
    page.find("#by-clear").click()
    page.until(lambda: not page.seen("#by") and not page.all(".hit"))


DROP = """
const [name, data] = arguments;
const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
const carried = new DataTransfer();
carried.items.add(new File([bytes], name, { type: "image/png" }));
for (const kind of ["dragenter", "dragover", "drop"])
  document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: carried, bubbles: true, cancelable: true }));
"""


def test_a_dropped_picture_is_a_query(page: Page) -> None:
    page.driver.execute_script(DROP, "dropped.png", b64encode(png(COLORS["orange"])).decode())
    page.until(lambda: page.names() and page.names()[0] == "orange.png")
    assert not page.seen("#drop")


def test_similar_items(page: Page) -> None:
    page.search("green")
    page.find(".hit .open").send_keys("s")
    page.until(lambda: "similar=" in page.driver.current_url and page.idle() and page.names())
    assert "green.png" not in page.names()
    page.until(lambda: page.find("#by-name").text == "like green.png")
    page.driver.back()
    page.until(lambda: page.names() and page.names()[0] == "green.png")
    button = page.find(".hit .similar")
    page.driver.execute_script("arguments[0].click()", button)
    page.until(lambda: "similar=" in page.driver.current_url)


def test_the_page_is_used_with_the_keyboard_alone(page: Page) -> None:
    page.press("blue", Keys.ENTER)
    page.until(lambda: page.names() and page.names()[0] == "blue.png")
    page.press(Keys.ARROW_DOWN)
    cards = page.all(".hit .open")
    tops = [card.location["y"] for card in cards]
    columns = sum(top == tops[0] for top in tops)
    assert 1 < columns < len(cards)
    assert page.focused() == cards[0]
    page.press(Keys.ARROW_RIGHT)
    assert page.focused() == cards[1]
    page.press(Keys.ARROW_DOWN)
    assert page.focused() == cards[1 + columns]
    page.press(Keys.ARROW_UP, Keys.ARROW_LEFT)
    assert page.focused() == cards[0]
    page.press(Keys.END)
    assert page.focused() == cards[-1]
    page.press(Keys.HOME, Keys.ENTER)
    page.until(lambda: page.seen("#detail"))
    assert page.find("#detail-name").text == "blue.png"
    page.press(Keys.ARROW_RIGHT)
    second = page.find("#detail-name").text
    assert second != "blue.png"
    page.press(Keys.ESCAPE)
    page.until(lambda: not page.seen("#detail") and page.focused() == cards[1])
    page.press("/")
    assert page.focused().get_attribute("id") == "q"
    assert page.focused().get_attribute("value") == "blue"


def test_everything_that_can_be_used_has_a_name(page: Page) -> None:
    page.search("red")
    nameless = page.driver.execute_script(
        """return [...document.querySelectorAll("button, input, img, a, dialog, ul")].filter((node) => {
             if (node.tagName === "IMG") return !node.hasAttribute("alt");
             const label = node.labels?.length || node.getAttribute("aria-label") || node.getAttribute("aria-labelledby");
             return !label && !node.textContent.trim();
           }).map((node) => node.outerHTML)"""
    )
    assert nameless == []
    assert page.find("#status").get_attribute("aria-live") == "polite"
    page.press(Keys.TAB)
    ring = page.driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert ring != "none"


def test_the_api_page_lists_the_endpoints(page: Page) -> None:
    page.driver.get(page.address + "/docs")
    page.until(lambda: "/v1/embeddings" in [element.text for element in page.all(".path")])
    for summary in page.all("summary"):
        summary.click()
    assert page.seen("table")


def test_the_policy_is_in_force_and_a_violation_would_be_seen(driver: Any, address: str) -> None:
    Page(driver, address).open()
    driver.get_log("browser")
    with pytest.raises(JavascriptException, match="TrustedHTML"):
        driver.execute_script("document.body.insertAdjacentHTML('beforeend', '<b>x</b>')")
    driver.execute_script("document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:1/x.png'}))")
    blocked = WebDriverWait(driver, 10).until(lambda _: [entry["message"] for entry in driver.get_log("browser")])
    assert any("Content Security Policy" in message for message in blocked)


def test_a_failing_server_is_told(driver: Any, store: Store) -> None:
    address, stop = serve(store)
    page = Page(driver, address).open()
    stop()
    page.find("#q").send_keys("red", Keys.ENTER)
    page.until(lambda: page.seen("#error"))
    assert "does not answer" in page.find("#error").text
    page.find("#error-close").click()
    assert not page.seen("#error")


def test_a_private_store_asks_for_its_token(driver: Any, store: Store) -> None:
    address, stop = serve(store, token=TOKEN)
    try:
        page = Page(driver, address)
        driver.get(address + "/?q=blue")
        for wrong in ("wrong", TOKEN):
            page.until(lambda: page.seen("#login"))
            page.find("#token").send_keys(wrong, Keys.ENTER)
            time.sleep(0.3)
        page.until(lambda: page.names() and page.names()[0] == "blue.png")
        first = page.find(".hit img")
        page.until(lambda: driver.execute_script("return arguments[0].naturalWidth", first) == 64)
        assert first.get_attribute("src").startswith("blob:")
        assert TOKEN not in driver.current_url
        kept = driver.execute_script("return JSON.stringify([{...localStorage}, document.cookie])")
        assert TOKEN not in json.dumps(kept)
    finally:
        stop()


@pytest.mark.parametrize(("width", "height"), [(360, 740), (820, 1100), (1600, 1000)])
def test_nothing_sticks_out_at_any_width(page: Page, width: int, height: int) -> None:
    device = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
    try:
        for path in ("/", "/?q=blue", "/?q=violin", "/docs"):
            page.driver.get(page.address + path)
            time.sleep(0.4)
            wide = page.driver.execute_script("return document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, path
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
