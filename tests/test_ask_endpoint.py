"""Language models behind an address: what goes right, and every way it goes wrong, against a server started here."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from chiasm.errors import BadInput, EndpointError
from chiasm.reason.rag import Corpora, Endpoint, OpenAIGenerator, Passage, Pipeline, Question
from chiasm.reason.rag.universal_rag import PromptRouter, targets

pytest.importorskip("openai")

ORLA = Passage("orla", "The plant in Orla is run by Mira Voss.", uri="/secret/folder/orla.txt")
BRUM = Passage("brum", "The plant in Brum makes glass bottles.", uri="/secret/folder/brum.txt")
QUESTION = Question("Who runs the plant in Orla?")


def completion(text, **message):
    body = {"role": "assistant", "content": text, **message}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": body, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }


class Server:
    """Answers as told: ``replies`` are (status, body) or functions, the last one again and again."""

    def __init__(self):
        self.replies, self.requests = [(200, completion("The plant is run by Mira Voss [1]."))], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                self.send(200, {"object": "list", "data": [{"id": "small", "object": "model"}]})

            def do_POST(self):
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                outer.requests.append(json.loads(raw))
                reply = outer.replies.pop(0) if len(outer.replies) > 1 else outer.replies[0]
                if callable(reply):
                    reply(self)
                else:
                    self.send(*reply)

            def send(self, status, body):
                raw = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server():
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def generator(server, **options):
    return OpenAIGenerator(server.url, **{"retries": 0, "timeout": 5, "deadline": 10, **options})


def asked(server, *passages, **options):
    return generator(server, **options)(QUESTION, passages or (BRUM, ORLA))


def test_the_answer_names_its_passage(server):
    server.replies = [(200, completion("It is run by Mira Voss [2]."))]
    draft = asked(server)
    assert draft.text == "It is run by Mira Voss [1]."
    assert draft.used == ("orla",)
    assert draft.warnings == ()
    request = server.requests[0]
    assert request["model"] == "small"  # the first that is listed
    assert request["temperature"] == 0
    roles = [message["role"] for message in request["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    assert request["messages"][-1]["content"] == QUESTION.text
    assert "/secret" not in json.dumps(request)  # folders are nobody's business
    assert "orla.txt" in request["messages"][1]["content"]


def test_it_says_that_nothing_is_there(server):
    server.replies = [(200, completion("NOT IN THE PASSAGES"))]
    draft = asked(server)
    assert draft.abstained
    assert draft.warnings == ()
    made = Pipeline(Corpora({"d": [ORLA]}), generator=generator(server))
    assert made.ask(QUESTION).abstained


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((500, {"error": {"message": "out of memory"}}), "failed (500"),
        ((429, {"error": {"message": "slow down"}}), "limited"),
        ((200, b"<html>login</html>"), "no chat completion"),
        ((200, b"not json at all"), "no chat completion"),
        ((200, {"hello": 1}), "no chat completion"),
        ((200, {"choices": []}), "no chat completion"),
        ((200, {"choices": "none"}), "no chat completion"),
        ((200, completion("")), "empty message"),
        ((200, completion(None)), "empty message"),
        ((200, completion(None, refusal="I cannot help with that.")), "refused"),
        ((200, completion("qwertz uiop asdf")), "named no passage"),
        ((200, completion("[1] [2]")), "without a word"),
    ],
)
def test_what_fails_falls_back_and_says_so(server, reply, said):
    server.replies = [reply]
    draft = asked(server)
    assert draft.text == "The plant in Orla is run by Mira Voss."  # the offline answer
    assert draft.used == ("orla",)
    assert said in draft.warnings[0]
    assert "offline answer" in draft.warnings[0]


def test_without_a_fallback_it_is_one_clear_error(server):
    server.replies = [(500, {"error": {"message": "out of memory"}})]
    with pytest.raises(EndpointError, match=r"failed \(500") as raised:
        asked(server, fallback=None)
    assert "127.0.0.1" in str(raised.value)
    server.replies = [(200, completion(None, refusal="No."))]
    assert asked(server, fallback=None).abstained


@pytest.mark.parametrize(
    ("status", "said"), [(401, "does not accept the key"), (403, "key"), (404, "no such address"), (400, "the request")]
)
def test_a_wrong_set_up_is_always_an_error(server, status, said):
    server.replies = [(status, {"error": {"message": "no"}})]
    with pytest.raises(BadInput, match=said):
        asked(server)


def test_nobody_there():
    nobody = OpenAIGenerator("http://127.0.0.1:9/v1", "m", retries=0, timeout=2, deadline=5)
    draft = nobody(QUESTION, [ORLA])
    assert draft.used == ("orla",)
    assert "cannot be reached" in draft.warnings[0]


def test_a_slow_server_and_one_that_drips(server):
    def slow(handler):
        time.sleep(3)

    server.replies = [slow]
    start = time.monotonic()
    assert "in time" in asked(server, timeout=0.3).warnings[0]

    def drip(handler):  # never silent long enough for a timeout
        handler.send_response(200)
        handler.end_headers()
        for _ in range(40):
            try:
                handler.wfile.write(b" ")
                handler.wfile.flush()
            except OSError:
                return
            time.sleep(0.1)

    server.replies = [drip]
    assert "did not finish within 1 s" in asked(server, timeout=1, deadline=1).warnings[0]
    assert time.monotonic() - start < 6


def test_what_passes_is_tried_again(server):
    server.replies = [(500, {}), (200, completion("Mira Voss runs it [2]."))]
    assert asked(server, retries=1).used == ("orla",)
    assert len(server.requests) == 2


def test_numbers_that_do_not_exist_and_answers_without_numbers(server):
    server.replies = [(200, completion("Mira Voss [7] runs the plant [2]."))]
    draft = asked(server)
    assert draft.text == "Mira Voss runs the plant [1]."
    assert "do not exist" in draft.warnings[0]
    server.replies = [(200, completion("The plant is run by Mira Voss."))]
    draft = asked(server)
    assert draft.used == ("orla",)
    assert "named no passage" in draft.warnings[0]
    server.replies = [(200, completion("Zebras graze on wide green savannas [1]."))]
    assert "word for word" in asked(server).warnings[0]


def test_a_cut_answer_says_so(server):
    body = completion("The plant in Orla is run by Mira [2]")
    body["choices"][0]["finish_reason"] = "length"
    server.replies = [(200, body)]
    assert "cut off" in asked(server).warnings[0]


def test_pictures_are_sent_only_if_asked_for(server):
    from PIL import Image

    seen = Passage("p", "", "image", content=Image.new("RGB", (90, 90), "red"))
    generator(server, vision=True)(QUESTION, [seen, ORLA])
    parts = server.requests[-1]["messages"][1]["content"]
    assert [part["type"] for part in parts] == ["text", "text", "image_url"]
    generator(server)(QUESTION, [seen, ORLA])
    assert isinstance(server.requests[-1]["messages"][1]["content"], str)


def test_addresses_and_numbers_are_checked():
    for bad in ("", "localhost:8080", "ftp://x/v1", "http://"):
        with pytest.raises(BadInput, match="no http address"):
            Endpoint(bad)
    with pytest.raises(BadInput):
        Endpoint("http://localhost/v1", timeout=0)
    assert "secret" not in Endpoint("http://user:secret@localhost:1/v1").name


def test_a_model_can_route(server):
    server.replies = [(200, completion(word)) for word in ("table", "Image.", "not sure", "no")]
    router = PromptRouter(Endpoint(server.url, retries=0), targets("none", "paragraph", "table", "image"))
    assert router.route("How large is it?")[0].corpus == "table"
    assert router.route("What color is it?")[0].corpus == "image"
    first = router.route("Hm?")[0]  # "not" is not "none"
    assert router.failures == 1
    assert router.route("Hm?")[0] == first  # random, but the same for the same question
    rules = server.requests[0]["messages"][0]["content"]
    assert "table" in rules
    assert server.requests[0]["messages"][1]["content"] == "Question: How large is it?"
