"""Is the new model compatible with the old gallery? The criterion, the flips behind it, and the update gain.

compatible      M(new query -> old gallery) > M(old query -> old gallery), strictly, in each direction
PFR - NFR       = M(new -> old) - M(old -> old), with PFR the share (old wrong, new right), NFR (old right, new wrong)
update gain     = (M(n -> o) - M(o -> o)) / (M(n -> n) - M(o -> o))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chiasm.errors import BadInput


def flips(before: Any, after: Any) -> tuple[float, float]:
    """Positive and negative flip rate.

    Args:
        before, after: 0 or 1 for each query ``[N]``: right with the old, right with the new model.

    Raises:
        BadInput: different lengths, none at all, or values other than 0 and 1.
    """
    old, new = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if old.shape != new.shape or old.ndim != 1 or not len(old):
        raise BadInput(f"shapes {old.shape} and {new.shape}", where="flips", fix="Give one figure a query, of both")
    if not (np.isin(old, (0, 1)).all() and np.isin(new, (0, 1)).all()):
        raise BadInput("figures other than 0 and 1", where="flips", fix="Give hits at k")
    return float((new > old).mean()), float((new < old).mean())


def update_gain(new_old: float, old_old: float, new_new: float) -> float:
    """Share of the new model's lead that queries already have; NaN where the new model does not lead."""
    lead = new_new - old_old
    return float("nan") if not lead > 0 else (new_old - old_old) / lead


@dataclass(frozen=True)
class Compatibility:
    """What an upgrade does, in each direction.

    Args:
        old_old, new_old, new_new: direction -> hits at k of each query ``[N]`` (``new_new`` may lack directions).
    """

    old_old: Mapping[str, np.ndarray]
    new_old: Mapping[str, np.ndarray]
    new_new: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if set(self.old_old) != set(self.new_old) or not self.old_old:
            raise BadInput("both systems need figures in the same directions", where="Compatibility")

    def holds(self, direction: str | None = None) -> bool:
        """Whether the criterion holds: strictly more, in this direction or in all."""
        ways = self.old_old if direction is None else (direction,)
        return all(float(np.mean(self.new_old[w])) > float(np.mean(self.old_old[w])) for w in ways)

    def table(self) -> dict[str, dict[str, float]]:
        """Direction -> ``old_old``, ``new_old``, ``new_new``, ``pfr``, ``nfr``, ``gain`` (update gain), ``compatible``."""
        rows = {}
        for way in self.old_old:
            old, new = (float(np.mean(side[way])) for side in (self.old_old, self.new_old))
            best = float(np.mean(self.new_new[way])) if way in self.new_new else float("nan")
            positive, negative = flips(self.old_old[way], self.new_old[way])
            rows[way] = {
                "old_old": old,
                "new_old": new,
                "new_new": best,
                "pfr": positive,
                "nfr": negative,
                "gain": update_gain(new, old, best),
                "compatible": float(self.holds(way)),
            }
        return rows
