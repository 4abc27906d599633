"""Scenes of two animals with roles: who acts, who is acted on, and how. A bag of words cannot tell them apart.

    >>> world = role_scenes(3000, seed=0)
    >>> world.patches            # float32 [3000, 3, 32]: the acting one, the one acted on, the deed; roles are places
    >>> world.texts[0]           # "red dog chases blue cat"

For methods that must learn structure: the graph of every caption is known from how it was made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chiasm.errors import BadInput
from chiasm.worlds.patches import COLORS

ANIMALS = ("dog", "cat", "horse", "cow", "bird", "duck", "goat", "pig")
VERBS = ("chases", "carries", "pushes", "pulls", "lifts", "follows")
# The codes of colors, animals and verbs are the same in all worlds, as words are.
_CODES = 20_260_102


@dataclass(frozen=True)
class RoleScenes:
    """N scenes.

    Args:
        patches: float32 ``[N, 3, dim]``: the acting animal, the other one, the deed. Only the place tells the role.
        color, animal: int ``[N, 2]``, indices into ``COLORS`` and `ANIMALS`, the acting one first.
        verb: int ``[N]``, index into `VERBS`.
        texts: "color animal verb color animal".
        groups: int ``[N]``; equal for scenes of which the same is said.
    """

    patches: np.ndarray
    color: np.ndarray
    animal: np.ndarray
    verb: np.ndarray
    texts: list[str]
    groups: np.ndarray

    def __len__(self) -> int:
        return len(self.patches)

    def swapped(self, kind: str) -> list[str | None]:
        """The caption with the roles (``"relation"``) or the colors (``"attribute"``) exchanged; None where that is not false.

        Colors that are equal cannot be exchanged; nor does it change anything between two animals of one kind but to
        exchange their roles.
        """
        if kind not in ("relation", "attribute"):
            raise BadInput(f"kind={kind!r}", where="RoleScenes.swapped", fix="Use 'relation' or 'attribute'")
        out: list[str | None] = []
        for color, animal, verb in zip(self.color, self.animal, self.verb):
            same = color[0] == color[1] or animal[0] == animal[1]
            if kind == "relation":
                out.append(_say(color[::-1], animal[::-1], verb))
            else:
                out.append(None if same else _say(color[::-1], animal, verb))
        return out


def role_scenes(n: int, *, seed: int = 0, dim: int = 32, noise: float = 0.35) -> RoleScenes:
    """Draws scenes; no two animals of a scene have both color and kind in common.

    Args:
        n: how many.
        seed: decides them; the codes of words do not depend on it.
        dim: length of a patch vector.
        noise: standard deviation of the noise on every entry; codes have entries of size 1 / sqrt(2).

    Raises:
        BadInput: fewer than one scene.
    """
    if n < 1:
        raise BadInput(f"n={n}", where="role_scenes")
    words = len(COLORS) + len(ANIMALS) + len(VERBS)
    codes = np.random.default_rng(_CODES).standard_normal((words, dim)) / np.sqrt(2)
    rng = np.random.default_rng(seed)
    kind = rng.random((n, len(COLORS) * len(ANIMALS))).argsort(axis=1)[:, :2]
    color, animal, verb = kind // len(ANIMALS), kind % len(ANIMALS), rng.integers(0, len(VERBS), n)
    patches = noise * rng.standard_normal((n, 3, dim))
    patches[:, :2] += codes[color] + codes[len(COLORS) + animal]
    patches[:, 2] += codes[len(COLORS) + len(ANIMALS) + verb]
    texts = [_say(*scene) for scene in zip(color, animal, verb)]
    groups = (kind[:, 0] * len(COLORS) * len(ANIMALS) + kind[:, 1]) * len(VERBS) + verb
    return RoleScenes(patches.astype(np.float32), color, animal, verb, texts, groups)


def _say(color: np.ndarray, animal: np.ndarray, verb: int) -> str:
    first, second = (f"{COLORS[c]} {ANIMALS[a]}" for c, a in zip(color, animal))
    return f"{first} {VERBS[verb]} {second}"
