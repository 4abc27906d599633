"""Recordings and the sentences that name them: what the pocket space learns sound from.

Ten kinds of sounds (``esc10_sounds``) and ten spoken words (``digits_audio_image``), each with sentences of ours and, for the
sounds, with short captions of other people's recordings (``audio_captions_texts``, of which only the texts are there).
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chiasm.items import Sound

# label -> what its captions say, and sentences of ours; the label itself is one of them.
SOUNDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "dog bark": (r"\bdogs?\b.*\bbark|\bbark\w*\b.*\bdogs?\b", ("a dog barking", "dogs bark", "a dog barks at someone")),
    "rain": (r"\brain(s|ing|fall)?\b", ("rain falling", "the sound of rain", "it rains heavily")),
    "sea waves": (r"\bwaves?\b", ("waves crashing on the shore", "the sound of the sea", "ocean waves")),
    "baby cry": (
        r"\b(baby|infant|babies)\b.*\b(cry|cries|crying)",
        ("a baby crying", "a crying baby", "an infant cries"),
    ),
    "clock tick": (
        r"\bclock\b.*\btick|\btick\w*\b.*\bclock",
        ("a clock ticking", "the ticking of a clock", "tick tock"),
    ),
    "person sneeze": (r"\bsneez", ("someone sneezing", "a person sneezes", "a loud sneeze")),
    "helicopter": (r"\bhelicopter", ("a helicopter flying", "the rotor of a helicopter", "helicopter blades")),
    "chainsaw": (r"\bchain ?saw", ("a chainsaw running", "cutting wood with a chainsaw", "a chain saw")),
    "rooster": (r"\brooster", ("a rooster crowing", "the crow of a rooster", "a cock crows")),
    "fire crackling": (r"\bfire\b.*\bcrackl|\bcrackl\w*\b.*\bfire", ("a crackling fire", "fire burning", "a campfire")),
}
# Captions that name something beside the sound teach the wrong words.
_OTHERS = re.compile(
    r"\b(m[ae]n|wom[ae]n|people|person|someone|child\w*|adult\w*|speak\w*|talk\w*|music|laugh\w*|follow\w*|then|and|with)\b",
    re.IGNORECASE,
)
MOST_WORDS = 8
CAPTIONS = 40  # of a kind
DIGIT_SENTENCES = ("{}", "somebody says {}", "the spoken word {}", "a voice saying the number {}")


@dataclass(frozen=True)
class Recording:
    """One recording: its name in the set, kind, fold (0 where there is none) and split."""

    id: str
    kind: str
    fold: int
    split: str

    @property
    def original(self) -> str:
        """The recording that it was cut from: the set's names are ``fold-original-take``."""
        return self.id.rsplit("-", 1)[0]


def sound_recordings(folder: Path) -> list[Recording]:
    """The recordings of ``esc10_sounds``."""
    rows = [json.loads(line) for line in (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    return [Recording(row["id"], row["label"], row["fold"], row["split"]) for row in rows if row["split"] != "heldout"]


def few_of_each(recordings: Sequence[Recording], each: int | None) -> list[Recording]:
    """At most so many of each kind and split, in their order; all of them with None."""
    taken: dict[tuple[str, str], int] = {}
    kept = []
    for one in recordings:
        count = taken[one.kind, one.split] = taken.get((one.kind, one.split), 0) + 1
        if each is None or count <= each:
            kept.append(one)
    return kept


def digit_recordings(folder: Path) -> list[Recording]:
    """The spoken digits of ``digits_audio_image``; the kind is the English word."""
    words = json.loads((folder / "words.json").read_text(encoding="utf-8"))["en"]
    rows = [json.loads(line) for line in (folder / "audio.jsonl").read_text(encoding="utf-8").splitlines()]
    return [Recording(row["id"], words[row["digit"]], 0, row["split"]) for row in rows if row["split"] != "heldout"]


def read_recordings(folder: Path, recordings: Sequence[Recording]) -> Iterator[Sound]:
    """Their sound, one after the other, from the set's ``audio.zip``."""
    import soundfile

    with zipfile.ZipFile(folder / "audio.zip") as archive:
        for one in recordings:
            samples, rate = soundfile.read(io.BytesIO(archive.read(f"audio/{one.id}")), dtype="float32", always_2d=True)
            yield Sound(samples.mean(axis=1, dtype=np.float32), rate)


def sentences(captions: Path | None, digits: Sequence[str] = ()) -> tuple[dict[str, list[str]], list[str]]:
    """Sentences of each kind, and captions of other sounds.

    Args:
        captions: the folder of ``audio_captions_texts``, if it is there.
        digits: the words that are spoken.

    Returns:
        kind -> sentences (the label first), and sentences that belong to no kind.
    """
    found = {label: [label, *ours] for label, (_, ours) in SOUNDS.items()}
    found |= {word: [sentence.format(word) for sentence in DIGIT_SENTENCES] for word in digits}
    others: list[str] = []
    for caption in _captions(captions) if captions is not None else ():
        if len(caption.split()) > MOST_WORDS:
            continue
        kinds = [label for label, (pattern, _) in SOUNDS.items() if re.search(pattern, caption, re.IGNORECASE)]
        if not kinds:
            others.append(caption)
        elif len(kinds) == 1 and not _OTHERS.search(caption) and len(found[kinds[0]]) < CAPTIONS:
            found[kinds[0]].append(caption)
    # Anything that could be one of the kinds is no other sound.
    near = re.compile(
        r"\b(dog|bark|rain|water|wave|ocean|baby|infant|cry|clock|tick|sneez|helicopter|saw|rooster|fire|crackl|crow)",
        re.I,
    )
    return found, [caption for caption in others if not near.search(caption)]


def _captions(folder: Path) -> Iterator[str]:
    with gzip.open(folder / "captions.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row: dict[str, Any] = json.loads(line)
            if row["split"] == "train":
                yield from row["captions_en"]
