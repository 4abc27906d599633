"""A generated collection about strangers: fictional towns with facts, joint documents, emblems, clips and films.

For each of N towns there is a paragraph (who founded it), an emblem (a tile of 8 x 8 colored pixels), four clips (16 frames,
one event each) and the film of the four; towns in threes share a document. Words and pixels meet in one space: words
have vectors by their meaning (so that "badge" and "emblem" agree), and pixels are mapped to the vectors of their captions
by ridge regression on noisy views, as a trained tower would. ``offset`` moves texts one way and everything else the
other: the modality gap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chiasm.embeddings import unit
from chiasm.errors import BadInput
from chiasm.reason.rag.corpora import Corpora
from chiasm.reason.rag.messages import Passage, Question
from chiasm.reason.rag.universal_rag.evaluation import Asked
from chiasm.reason.rag.universal_rag.vectors import mixed
from chiasm.reason.rag.words import content_words

DIM = 256
MINUTES = 4
FRAMES, SIDE = 16, 8
# Pixel noise of a view; of one half the towers find about nine of ten emblems.
NOISE = 0.35
COLORS = {
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
    "purple": (1, 0, 1),
    "white": (1, 1, 1),
}
EVENTS = ("fire", "parade", "storm", "market", "race", "flood", "concert", "harvest")
RIVERS = ("Ister", "Padus", "Rhenus", "Tamesis", "Sequana", "Viadrus")
# Words of one meaning have one vector.
MEANINGS = (
    ("founded", "established", "founder"),
    ("share", "common", "both"),
    ("color", "painted"),
    ("emblem", "badge"),
    ("film", "footage"),
    ("minute",),
    ("order", "throughout", "sequence"),
    ("happen", "happens", "event", "seen", "going"),
)
_STYLES = {
    "paragraph": ("Who founded {a}?", "By whom was {a} founded?", "Name those who once established or founded {a}."),
    "document": (
        "What do {a} and {b} share?",
        "Which thing do both {a} and {b} share?",
        "Something is common to {a} and {b}: what do they share?",
    ),
    "image": (
        "What color is the emblem of {a}?",
        "Which color has the emblem of {a}?",
        "The badge of {a}: in what color is it painted?",
    ),
    "clip": (
        "What happens at minute {m} in the film about {a}?",
        "Which event is seen at minute {m} of the film on {a}?",
        "Minute {m} of the footage of {a}: what is going on?",
    ),
    "video": (
        "In which order do things happen in the film about {a}?",
        "What is the order of events in the film on {a}?",
        "List what goes on throughout the footage of {a}, in order.",
    ),
    "none": ("What is {x} plus {y}?", "How much is {x} plus {y}?", "What is {x} and then plus {y} again?"),
}
STYLES = 3


@dataclass(frozen=True)
class StrangeWorld:
    """A collection with its truth.

    Args:
        corpora: paragraph, document, image, clip and video, with vectors.
        towns: their names; the first 60 % are for training a router, the others are strangers to it.
        vectors: ``[N, D]`` of all passages, in the order of ``passages``.
        passages: all of them.
        encode: texts to vectors, on the side of the texts.
    """

    corpora: Corpora
    towns: tuple[str, ...]
    passages: tuple[Passage, ...]
    vectors: np.ndarray
    words: _Words
    offset: float

    def questions(self, style: int, *, strangers: bool, count: int, seed: int) -> list[Asked]:
        """``count`` questions of each target in one style of three (0, 1, 2), about known towns or strangers.

        Raises:
            BadInput: there is no such style.
        """
        if not 0 <= style < STYLES:
            raise BadInput(f"style {style} of {STYLES}", where="StrangeWorld.questions")
        rng = np.random.default_rng([seed, style, int(strangers)])
        known = round(0.6 * len(self.towns)) // 3 * 3
        pool = np.arange(known, len(self.towns)) if strangers else np.arange(known)
        asked = []
        for corpus, styles in _STYLES.items():
            for town in rng.choice(pool, count, replace=count > len(pool)).tolist():
                minute, x, y = rng.integers(MINUTES), *rng.integers(2, 99, 2)
                mate = town // 3 * 3 + (town + 1) % 3
                text = styles[style].format(a=self.towns[town], b=self.towns[mate], m=minute + 1, x=x, y=y)
                gold = {
                    "paragraph": f"paragraph-{town}",
                    "document": f"document-{town // 3}",
                    "image": f"image-{town}",
                    "clip": f"clip-{town}-{minute}",
                    "video": f"video-{town}",
                }.get(corpus)
                asked.append(Asked(Question(text, vector=self.encode(text)), corpus, (gold,) if gold else ()))
        return asked

    def encode(self, text: str) -> np.ndarray:
        """A text's vector, with the offset of texts."""
        return _moved(self.words.vectors([text]), self.offset)[0]


def strange_world(
    towns: int = 99, *, seed: int = 0, offset: float = 0.6, aligned: bool = False, alpha: float = 0.2
) -> StrangeWorld:
    """Makes the collection.

    Args:
        towns: a multiple of three.
        seed: of everything.
        offset: length of the vector that is added to texts and subtracted from everything else.
        aligned: pictures and films have the vectors of their captions: a perfect tower.
        alpha: weight of captions in the vectors of pictures and films. The captions name the town, so that with
            ``alpha=1`` nothing need be seen.

    Raises:
        BadInput: ``towns`` is no positive multiple of three.
    """
    if towns < 3 or towns % 3:
        raise BadInput(f"{towns} towns are no multiple of three", where="strange_world")
    rng = np.random.default_rng(seed)
    names = _names(rng, towns)
    words = _Words(int(rng.integers(2**31)))
    glyphs = rng.random((towns, SIDE, SIDE)) < 0.5
    event_glyphs = rng.random((len(EVENTS), SIDE, SIDE)) < 0.5
    colors = rng.integers(len(COLORS), size=towns)
    events = np.stack([rng.permutation(len(EVENTS))[:MINUTES] for _ in range(towns)])
    rivers = rng.integers(len(RIVERS), size=towns // 3)
    people = _names(rng, towns)

    listed: dict[str, list[Passage]] = {name: [] for name in _STYLES if name != "none"}
    seen: dict[str, list[np.ndarray]] = {"image": [], "clip": [], "video": []}
    palette = np.array(list(COLORS.values()), float)
    for town, name in enumerate(names):
        listed["paragraph"].append(Passage(f"paragraph-{town}", f"{name} was founded by {people[town]}."))
        color = list(COLORS)[colors[town]]
        listed["image"].append(Passage(f"image-{town}", f"emblem of {name}, color {color}", "image"))
        seen["image"].append((glyphs[town][..., None] * palette[colors[town]]).ravel())
        clips = []
        for minute in range(MINUTES):
            event = EVENTS[events[town, minute]]
            caption = f"film about {name}, minute {minute + 1}: event {event}"
            listed["clip"].append(Passage(f"clip-{town}-{minute}", caption, "video"))
            clips.append(_clip(glyphs[town], event_glyphs[events[town, minute]], minute))
            seen["clip"].append(clips[-1].reshape(4, -1, SIDE * SIDE).mean(1).ravel())
        order = ", ".join(EVENTS[event] for event in events[town])
        listed["video"].append(Passage(f"video-{town}", f"film about {name}, order of what happens: {order}", "video"))
        seen["video"].append(np.stack(clips).mean(1).ravel())
    for three in range(towns // 3):
        own, river = names[3 * three : 3 * three + 3], RIVERS[rivers[three]]
        facts = " ".join(f"{name} lies on the {river}." for name in own)
        listed["document"].append(Passage(f"document-{three}", f"{facts} {', '.join(own)} share the river {river}."))

    corpora, passages, vectors = Corpora(), [], []
    for corpus, own in listed.items():
        texts = words.vectors([p.text for p in own])
        rows = _moved(texts, offset)
        if corpus in seen:
            shown = texts if aligned else _tower(np.stack(seen[corpus]), texts, rng)
            rows = _moved(mixed(texts, shown, alpha=alpha), -offset)
        corpora.add(own, corpus=corpus, vectors=rows)
        passages += own
        vectors.append(rows)
    return StrangeWorld(corpora, tuple(names), tuple(passages), np.concatenate(vectors), words, offset)


def _clip(town: np.ndarray, event: np.ndarray, minute: int) -> np.ndarray:
    """Frames ``[16, 8, 8]``: the town's glyph faintly, a clock in the first row, the event in eight frames."""
    frames = np.repeat(0.6 * town[None], FRAMES, 0).astype(float)
    frames[:, 0, :] = 0
    frames[:, 0, 2 * minute : 2 * minute + 2] = 1
    frames[4:12, 1:] += event[1:]
    return frames


def _tower(pixels: np.ndarray, captions: np.ndarray, rng: np.random.Generator, views: int = 4) -> np.ndarray:
    """What a tower sees in fresh noisy views, after ridge regression on others: ``[N, D]``."""
    projection = rng.normal(size=(pixels.shape[1], 2 * DIM)) / np.sqrt(pixels.shape[1])

    def seen() -> np.ndarray:
        return (pixels + NOISE * rng.normal(size=pixels.shape)) @ projection

    trained = np.concatenate([seen() for _ in range(views)])
    center, wanted = trained.mean(0), np.tile(captions, (views, 1))
    x = trained - center
    ridge = 0.03 * np.trace(x.T @ x) / x.shape[1] * np.eye(x.shape[1])
    weights = np.linalg.solve(x.T @ x + ridge, x.T @ (wanted - captions.mean(0)))
    return unit((seen() - center) @ weights + captions.mean(0))


def _moved(rows: np.ndarray, offset: float) -> np.ndarray:
    """Unit rows moved along the last axis, which no word uses, and made unit again."""
    out = unit(rows)
    out[:, -1] += offset
    return unit(out)


class _Words:
    """Texts as the sum of their words' vectors; words of one meaning share one, other words have their own."""

    def __init__(self, seed: int) -> None:
        self.seed = int(seed)
        self.meaning = {stem: group[0] for group in MEANINGS for word in group for stem in content_words(word)}
        self.known: dict[str, np.ndarray] = {}

    def vectors(self, texts: list[str]) -> np.ndarray:
        return unit(np.stack([sum((self._word(w) for w in content_words(t)), np.zeros(DIM)) for t in texts]))

    def _word(self, word: str) -> np.ndarray:
        name = self.meaning.get(word, word)
        if name not in self.known:
            rng = np.random.default_rng([self.seed, *name.encode()])
            vector = rng.normal(size=DIM) / np.sqrt(DIM)
            vector[-1] = 0
            # Names tell apart what is alike; numbers and filling words matter less.
            self.known[name] = vector * (1.0 if len(name) > 1 else 0.7)
        return self.known[name]


def _names(rng: np.random.Generator, count: int) -> list[str]:
    starts, middles, ends = (
        ("Or", "Bru", "Kel", "Va", "Thi", "Mo", "Zan", "Pe", "Gal", "Ru"),
        "lmrtvndk",
        ("a", "en", "ov", "ick", "um", "is"),
    )
    names: dict[str, None] = {}
    while len(names) < count:
        names[
            f"{rng.choice(starts)}{rng.choice(list(middles))}{rng.choice(list('aeiou'))}{rng.choice(list(middles))}{rng.choice(ends)}"
        ] = None
    return list(names)
