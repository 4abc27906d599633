"""What a question can be routed to: corpora of a modality and a granularity, each with its meaning, cues and examples.

The paper's six are none, paragraph, document, image, clip and video; tables (its later version) and sounds are two more.
Any other corpus is one more `Target`.
"""

from __future__ import annotations

from dataclasses import dataclass

from chiasm.reason.rag.pipeline import NONE


@dataclass(frozen=True, slots=True)
class Target:
    """One corpus that a router can choose.

    Args:
        name: of the corpus; ``"none"`` is no retrieval.
        meaning: which questions need it, as a prompt says it.
        cues: words and phrases that speak for it, in lower case; they are matched as whole words.
        examples: questions that need it.
    """

    name: str
    meaning: str
    cues: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()


# Meanings are the paper's, restated; cues and examples are ours.
TARGETS: tuple[Target, ...] = (
    Target(
        NONE,
        "common knowledge, reasoning or arithmetic that needs no look-up",
        ("plus", "minus", "times", "divided by", "squared", "synonym", "opposite of", "translate", "spell", "rhymes"),
        ("What is 12 plus 30?", "Which word is the opposite of heavy?"),
    ),
    Target(
        "paragraph",
        "one fact that a single short passage states",
        (
            "who",
            "founded",
            "born",
            "invented",
            "when was",
            "named after",
            "author",
            "neighbors",
            "borders",
            "known for",
        ),
        ("Who founded the town of Orla?", "When was the lighthouse built?"),
    ),
    Target(
        "document",
        "several facts or sources that must be put together",
        (
            "both",
            "in common",
            "share",
            "compare",
            "overview",
            "as well as",
            "relate",
            "all of",
            "summary",
            "altogether",
        ),
        ("What do the towns of Orla and Brum have in common?", "Give an overview of the villages of the valley."),
    ),
    Target(
        "image",
        "what something looks like: color, shape, parts, positions",
        (
            "look like",
            "looks like",
            "color",
            "colour",
            "picture",
            "photo",
            "photograph",
            "image",
            "shape",
            "wearing",
            "standing",
            "flag",
            "shown",
            "drawing",
        ),
        ("What color is the roof of the town hall?", "Show me a picture of a wooden bridge."),
    ),
    Target(
        "clip",
        "one short moment of a recording",
        ("moment", "at minute", "scene", "at the time", "right after", "right before", "at second"),
        ("What does the man do at minute 3 of the film?", "Which animal appears in the scene at the river?"),
    ),
    Target(
        "video",
        "a process or an order of events over a whole recording",
        ("in which order", "order of", "sequence", "step by step", "steps", "explain how", "how to", "throughout"),
        ("In which order are the parts put together in the film?", "Explain how the boat is repaired, step by step."),
    ),
    Target(
        "table",
        "figures and attributes that stand in a table",
        (
            "how many",
            "how large",
            "how much",
            "percent",
            "percentage",
            "average",
            "total",
            "rate",
            "score",
            "area",
            "share of",
            "row",
            "column",
            "currency",
            "highest",
            "lowest",
        ),
        ("How large is the area of the district in square kilometers?", "Which share of the questions was right?"),
    ),
    Target(
        "sound",
        "what something sounds like",
        ("sound", "sounds like", "sound like", "hear", "recording", "noise", "listen", "audio", "bark", "song"),
        ("What does a foghorn sound like?", "Let me hear a recording of an owl."),
    ),
)

PAPER = ("none", "paragraph", "document", "image", "clip", "video")


def targets(*names: str) -> tuple[Target, ...]:
    """The targets of these names, in the order given.

    Raises:
        UnknownName: there is none of that name.
    """
    from chiasm.errors import unknown_name

    known = {target.name: target for target in TARGETS}
    for name in names:
        if name not in known:
            raise unknown_name("target", name, known)
    return tuple(known[name] for name in names)
