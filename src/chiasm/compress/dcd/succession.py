"""Succession: a shallow student begins as a choice of the layers of its teacher.

METER's six co-attention layers become three, with the weights of layers 0, 3 and 5; everything else of the same name is
copied; the rank head is the "match" row of the teacher's two-way match head.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from chiasm.errors import BadInput

_LAYER = re.compile(r"(^|\.)layers\.(\d+)\.")
# Row of a two-way match head (no, yes) that becomes the rank head.
MATCH = 1


def heirs(teacher: int, student: int) -> list[int]:
    """Which layers of the teacher a student of fewer layers begins with: evenly spread, first and last among them.

    >>> heirs(6, 3)
    [0, 3, 5]

    Args:
        teacher: its number of layers.
        student: its number of layers, 1 .. ``teacher``; a single layer inherits the first.

    Raises:
        BadInput: more layers than the teacher has, or none.
    """
    if not 1 <= student <= teacher:
        raise BadInput(f"{student} layers cannot inherit from {teacher}", where="heirs")
    if student == 1:
        return [0]
    # Halves go up, so that 6 layers leave 0, 3, 5 as in the released code.
    return [(2 * i * (teacher - 1) + student - 1) // (2 * (student - 1)) for i in range(student)]


def succeed(student: nn.Module, teacher: nn.Module, layers: Sequence[int] | None = None) -> list[str]:
    """Gives a student the weights of its teacher, in place.

    Args:
        student, teacher: modules of the same structure, whose repeated part is a list called ``layers`` (one in each), of
            which the student has fewer. A first dimension of 1 in the student takes row 1 of a first dimension of 2.
        layers: which layers of the teacher; default `heirs`.

    Returns:
        The names of the student's weights, all of which were set.

    Raises:
        BadInput: the teacher lacks a weight, or it has another shape.
    """
    source, target = teacher.state_dict(), student.state_dict()
    counts = [1 + max((int(m[2]) for key in s if (m := _LAYER.search(key))), default=-1) for s in (source, target)]
    chosen = list(layers) if layers is not None else heirs(*counts) if counts[1] else []
    if len(chosen) != counts[1] or any(not 0 <= i < counts[0] for i in chosen):
        raise BadInput(f"layers {chosen} of {counts[0]} for a student of {counts[1]}", where="succeed")
    inherited = {}
    for key, value in target.items():
        old = _LAYER.sub(lambda m: f"{m[1]}layers.{chosen[int(m[2])]}.", key)
        found = source.get(old)
        if found is not None and found.shape[:1] == (2,) and value.shape[:1] == (1,):
            found = found[MATCH : MATCH + 1]
        if found is None or found.shape != value.shape:
            had = "nothing" if found is None else tuple(found.shape)
            raise BadInput(f"{key} is {tuple(value.shape)}, the teacher's {old} is {had}", where="succeed")
        inherited[key] = found.detach().clone()
    student.load_state_dict(inherited)
    return list(inherited)
