"""`SpaceMap`: a trained map as plain arrays, applied with numpy; what a store keeps and applies to every query.

map(x) = norm phi(a_m(x)),  a_m the adapter of the modality (none: a(x) = x)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import erf

from chiasm.embeddings import unit
from chiasm.errors import BadInput, SpaceMismatch

FORMAT = 1
# Which adapter a modality takes: a frame of a clip is a picture.
ADAPTER_OF = {"text": "text", "image": "image", "video": "image"}


@dataclass(frozen=True)
class SpaceMap:
    """A map from a new space into an old one.

    Args:
        arrays: name -> float32 array: ``linear.weight``, ``mlp.up.weight``, ``adapter.text.up``, ...
        new_dim, old_dim: lengths of the vectors.
        new_space, old_space: digests of the two spaces' fingerprints; ``""`` if unknown.
        facts: how it was made.
    """

    arrays: Mapping[str, np.ndarray]
    new_dim: int
    old_dim: int
    new_space: str = ""
    old_space: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """12 hex digits over the arrays: what an index header names."""
        found = hashlib.sha256()
        for name in sorted(self.arrays):
            found.update(
                f"{name}{self.arrays[name].shape}".encode() + np.ascontiguousarray(self.arrays[name]).tobytes()
            )
        return found.hexdigest()[:12]

    def __call__(self, vectors: np.ndarray, modality: str = "text") -> np.ndarray:
        """Vectors of the new space in the old one.

        Args:
            vectors: ``[N, Dn]``.
            modality: of all of them; decides the adapter.

        Returns:
            float32 ``[N, Do]`` of unit length.

        Raises:
            BadInput: vectors of another length.
        """
        x = np.asarray(vectors, np.float32)
        if x.ndim != 2 or x.shape[1] != self.new_dim:
            raise BadInput(f"vectors have shape {x.shape}, expected [N, {self.new_dim}]", where="SpaceMap")
        x = unit(x)
        side = f"adapter.{ADAPTER_OF.get(modality, '')}"
        if f"{side}.up" in self.arrays:
            moved = x + (x @ self.arrays[f"{side}.down"].T) @ self.arrays[f"{side}.up"].T
            x = unit(moved)
        y = np.zeros((len(x), self.old_dim), np.float32)
        if "linear.weight" in self.arrays:
            y = y + x @ self.arrays["linear.weight"].T + self.arrays["linear.bias"]
        if "mlp.up.weight" in self.arrays:
            y = y + self._perceptron("mlp", x)
        block = 0
        while f"blocks.{block}.up.weight" in self.arrays:
            y = y + self._perceptron(f"blocks.{block}", y)
            block += 1
        return unit(y)

    def _perceptron(self, name: str, x: np.ndarray) -> np.ndarray:
        hidden = x @ self.arrays[f"{name}.up.weight"].T + self.arrays[f"{name}.up.bias"]
        hidden *= 0.5 * (1 + erf(hidden * np.float32(2**-0.5)))
        return hidden @ self.arrays[f"{name}.down.weight"].T + self.arrays[f"{name}.down.bias"]

    def check(self, new_space: str, old_space: str, where: str) -> None:
        """Refuses spaces that the map was not made for.

        Raises:
            SpaceMismatch: one of the digests is another one.
        """
        for what, own, given in (("new", self.new_space, new_space), ("old", self.old_space, old_space)):
            if own and given and own != given:
                raise SpaceMismatch(
                    f"the map was made for the {what} space {own}, given is {given}",
                    where=where,
                    fix="Train the map anew with chiasm upgrade",
                )

    def to_bytes(self) -> bytes:
        """A safetensors file; see `load`."""
        from safetensors.numpy import save

        names = {k: getattr(self, k) for k in ("new_dim", "old_dim", "new_space", "old_space")}
        header = {"format": FORMAT, "facts": dict(self.facts), "digest": self.digest, **names}
        return save({k: np.ascontiguousarray(v) for k, v in self.arrays.items()}, {"xbt": json.dumps(header)})

    def save(self, path: str | Path) -> None:
        Path(path).write_bytes(self.to_bytes())

    @classmethod
    def load(cls, path: str | Path) -> SpaceMap:
        """Reads what `save` wrote; the values are bit-equal.

        Raises:
            BadInput: not there, not such a file, or its arrays are not those that were saved.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), "np") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                header = json.loads((file.metadata() or {})["xbt"])
            found = cls(
                arrays, header["new_dim"], header["old_dim"], header["new_space"], header["old_space"], header["facts"]
            )
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise BadInput(f"no map of spaces ({error})", where=str(path)) from error
        if header["digest"] != found.digest:
            raise BadInput("the arrays are not those that were saved", where=str(path), fix="Train the map anew")
        return found
