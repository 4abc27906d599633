"""``chiasm demo``: index real photographs, a page and a spoken sentence, then search what is there and what is not."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chiasm.cli.console import bar, note, print_json, print_table, waiting
from chiasm.cli.store_option import DEFAULT_SPACE, JsonOption, calibrate, open_for_indexing
from chiasm.errors import ChiasmError, missing_extra

if TYPE_CHECKING:
    from chiasm.search import SearchResult, Store

PANEL, PLACE = "Search", 5

# The real pictures that ship inside scikit-image and scikit-learn (drawings and test patterns are left out).
PICTURES = {
    "skimage/data": [
        "astronaut.png",
        "brick.png",
        "camera.png",
        "cell.png",
        "chelsea.png",
        "clock_motion.png",
        "coffee.png",
        "coins.png",
        "grass.png",
        "gravel.png",
        "horse.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "moon.png",
        "motorcycle_left.png",
        "page.png",
        "retina.jpg",
        "rocket.jpg",
    ],
    "sklearn/datasets/images": ["china.jpg", "flower.jpg"],
}
# Phrases whose picture is there, with the file that is right.
PRESENT = {
    "a cat": "chelsea.png",
    "an astronaut": "astronaut.png",
    "a cup of coffee": "coffee.png",
    "a rocket launch": "rocket.jpg",
    "a motorcycle": "motorcycle_left.png",
    "a flower": "flower.jpg",
    "a temple in China": "china.jpg",
    "a horse": "horse.png",
    "a brick wall": "brick.png",
    "a man with a camera": "camera.png",
}
ABSENT = (
    "a submarine",
    "a violin",
    "sushi",
    "an elephant",
    "a birthday cake",
    "a wedding",
    "a train station",
    "a computer keyboard",
    "a snowy mountain",
    "a football match",
)
PAGE = ("repairs.md", "how to stop a dripping tap")
PAGE_TEXT = """# Small repairs at home

## A dripping tap

Most taps drip because the rubber washer inside is worn. Turn the water off at the valve below the sink and open the tap
until no more water comes. Unscrew the handle, lift out the cartridge, and take the old washer to the hardware store: the
new one must have the same diameter. Put everything back in the opposite order and tighten it by hand only.

## A squeaking hinge

Pull out the pin, clean off the rust with steel wool, and rub it with candle wax or a drop of oil.
"""
SPEECH = ("voice-note.wav", "when to take the medicine")
SPOKEN = "The doctor says that the medicine must be taken every morning."
# Of the voices tried, this one at this speed is the one that the offline recognizer understands best.
VOICE = ("-v", "en-us+f2", "-s", "150")


@dataclass(frozen=True, slots=True)
class Asked:
    """One phrase of the demo: what came out, and the file that is right (None: nothing is)."""

    result: SearchResult
    right: str | None

    @property
    def first(self) -> str:
        return Path(self.result.hits[0].uri).name if self.result.hits else ""

    @property
    def found(self) -> bool:
        return self.right is not None and self.first == self.right


def command(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("demo-out"),
    space: Annotated[str, typer.Option(help="Model by name, hub id or folder.")] = DEFAULT_SPACE,
    as_json: JsonOption = False,
) -> None:
    """Try it: index photographs, a page and a spoken sentence; search 22 phrases; write a contact sheet."""
    out = out.expanduser()
    media, files = out / "media", pictures()
    try:
        spoken = lay_out(media, files)
    except OSError as error:
        raise ChiasmError(f"cannot be written ({error.strerror})", where=str(media), fix="Use --out") from error
    if not as_json:
        note(f"{len(files)} photographs, a page{' and a spoken sentence' if spoken else ''} in {media}")
        if not spoken:
            note("espeak-ng is not installed, so there is no spoken sentence.")
    from chiasm.cli.contact_sheet import write

    place = out / ("demo.chiasm" if space == DEFAULT_SPACE else f"demo-{Path(space).name}.chiasm")
    with waiting("loading the space"):
        store = open_for_indexing(place, space)
    with store:
        report = store.update(media) if len(store) else store.add(media)
        if not as_json:
            from chiasm.cli.index import print_report

            print_report(report, place, len(store), hint=False)
        with waiting("calibrating relevance"):
            calibrate(store)
        asked = ask(store, spoken=spoken)
        sheet = write(
            out / "demo.html",
            [one.result for one in asked],
            title="Chiasm demo",
            intro="Photographs from scikit-image and scikit-learn, a page of text and a voice note, searched by words.",
        )
    if as_json:
        print_json(
            {**counts(asked), "store": str(place), "page": str(sheet), "queries": [to_json(one) for one in asked]}
        )
    else:
        show(asked, place, sheet)


def pictures() -> list[Path]:
    """The photographs inside the installed scikit-image and scikit-learn, without importing either.

    Raises:
        MissingExtra: one of them is not installed, or came without its pictures.
    """
    found = []
    for place, names in PICTURES.items():
        package, _, inside = place.partition("/")
        spec = find_spec(package)
        folder = None if spec is None or spec.origin is None else Path(spec.origin).parent / inside
        here = [] if folder is None else [folder / name for name in names if (folder / name).is_file()]
        if not here:
            raise missing_extra("chiasm demo", "demo", "scikit-image" if package == "skimage" else "scikit-learn")
        found += here
    return found


def lay_out(media: Path, files: Sequence[Path]) -> bool:
    """Copies the pictures, writes the page, and speaks the sentence if espeak-ng is there; returns whether it is."""
    media.mkdir(parents=True, exist_ok=True)
    for source in files:
        if not (media / source.name).exists():
            shutil.copyfile(source, media / source.name)
    (media / PAGE[0]).write_text(PAGE_TEXT, encoding="utf-8")
    voice = media / SPEECH[0]
    speaker = shutil.which("espeak-ng")
    if speaker and not voice.exists():
        spoken = subprocess.run(
            [speaker, *VOICE, "-w", str(voice), SPOKEN], capture_output=True, timeout=60, check=False
        )
        if spoken.returncode != 0:
            voice.unlink(missing_ok=True)
    return voice.exists()


def ask(store: Store, *, spoken: bool, k: int = 4) -> list[Asked]:
    """Searches every phrase of the demo."""
    phrases: dict[str, str | None] = {**PRESENT, PAGE[1]: PAGE[0]}
    if spoken:
        phrases[SPEECH[1]] = SPEECH[0]
    phrases.update(dict.fromkeys(ABSENT))
    return [Asked(store.search(phrase, k), right) for phrase, right in phrases.items()]


def counts(asked: Sequence[Asked]) -> dict[str, dict[str, int]]:
    """How many phrases of each kind came out as they should."""
    present = [one for one in asked if one.result.query in PRESENT]
    other = [one for one in asked if one.right is not None and one.result.query not in PRESENT]
    absent = [one for one in asked if one.right is None]
    return {
        "right_first": {"count": sum(one.found for one in present), "of": len(present)},
        "present_called_present": {"count": sum(not one.result.nothing_here for one in present), "of": len(present)},
        "absent_called_nothing_here": {"count": sum(one.result.nothing_here for one in absent), "of": len(absent)},
        "text_and_speech_right_first": {"count": sum(one.found for one in other), "of": len(other)},
    }


def to_json(one: Asked) -> dict[str, Any]:
    return {"expected": one.right, "right": one.found if one.right else one.result.nothing_here, **one.result.to_json()}


def show(asked: Sequence[Asked], store: Path, sheet: Path) -> None:
    """The table of phrases, how many came out right, and what to type next."""
    rows = []
    for one in asked:
        hits = one.result.hits
        relevance = hits[0].relevance if hits and hits[0].relevance is not None else 0.0
        verdict = "nothing here" if one.result.nothing_here else ""
        if one.right is None:
            good = one.result.nothing_here
        else:
            good = one.found and not one.result.nothing_here
        rows.append(
            [
                one.result.query,
                one.first,
                f"{bar(relevance)} {relevance:4.0%}",
                verdict,
                "ok" if good else "wrong",
                f"{one.result.seconds:.3f}",
            ]
        )
    print_table(["phrase", "first hit", "relevance", "said", "", "seconds"], rows, right=("seconds",))
    n = {name: f"{value['count']} of {value['of']}" for name, value in counts(asked).items()}
    typer.echo(
        f"{n['right_first']} right first; {n['present_called_present']} of these not called nothing here; "
        f"{n['absent_called_nothing_here']} absent things called nothing here; "
        f"{n['text_and_speech_right_first']} of page and voice note right first."
    )
    typer.echo(f"Contact sheet: {sheet}")
    typer.echo(f'Now try: chiasm search "something to drink" --store {store}')
    typer.echo("         chiasm index ~/Pictures --store my.chiasm")
