"""Zero-shot classification with several prompts a class (section 3.2): similarities are averaged, because the token sequences
of two prompts cannot be averaged as vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chiasm.errors import BadInput
from chiasm.learn.held_out import Encoded
from chiasm.learn.objectives.filip.objective import Filip


@dataclass(frozen=True, slots=True)
class Prompt:
    """The paper's template: ``[prefix] {label}, [category description]. [suffix].``

    Args:
        prefix: what stands before the label.
        description: what kind of thing all labels are, for example "a type of pet"; empty for none.
        suffix: a further sentence; one with a pronoun that points back at the label, such as "I like it", helped.
    """

    prefix: str = "a photo of a"
    description: str = ""
    suffix: str = ""

    def text(self, label: str) -> str:
        """The prompt of a label."""
        first = ", ".join(part for part in (f"{self.prefix} {label}".strip(), self.description) if part) + "."
        return f"{first} {self.suffix.rstrip('.')}." if self.suffix else first

    def texts(self, labels: Sequence[str]) -> list[str]:
        """The prompts of all labels."""
        return [self.text(label) for label in labels]


PROMPTS = (
    Prompt(),
    Prompt("a photo of a", suffix="I like it"),
    Prompt("a photo of the", suffix="It is common in daily life"),
    Prompt("a close-up of a"),
)


def zero_shot(objective: Filip, pictures: Encoded, prompts: Sequence[Encoded]) -> Tensor:
    """Class scores ``[N, C]``: the mean over the templates of the score from picture to text.

    Args:
        objective: says which tokens take part.
        pictures: N encoded pictures.
        prompts: for each template the C encoded texts, one a class, in the same order.

    Raises:
        BadInput: no templates, or templates with different numbers of classes.
    """
    if len({len(texts) for texts in prompts}) != 1:
        raise BadInput(
            f"templates with {[len(t) for t in prompts]} classes",
            where="zero_shot",
            fix="Give each template every class",
        )
    total = torch.zeros(())
    for texts in prompts:
        total = total + objective.similarity(pictures, texts, "a", score="i2t")
    return total / len(prompts)
