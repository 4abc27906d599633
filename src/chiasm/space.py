"""`Space`: a set of encoders, one per modality, that end in comparable vectors. The one noun of the house."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from chiasm.embeddings import Embeddings
from chiasm.items import Item

Role = Literal["document", "query"]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What makes two sets of vectors comparable.

    Args:
        model: the name it was loaded by.
        revision: hub revision or package version.
        weights: hash of the parameters (hex).
        preprocessing: hash of everything that happens before the network (hex).
        dim: length of a vector.
    """

    model: str
    revision: str
    weights: str
    preprocessing: str
    dim: int

    @property
    def digest(self) -> str:
        """12 hex digits; equal exactly when vectors may be compared. The name is not part of it, the weights are."""
        key = json.dumps([self.weights, self.preprocessing, self.dim]).encode()
        return hashlib.sha256(key).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.model}@{self.digest[:4]} ({self.dim}-d)"


@runtime_checkable
class Space(Protocol):
    """The contract of a space; `chiasm.load` returns one, and any object with these members is one.

    Encoding has two halves so that decoding can overlap with the network: `prepare` runs in worker threads and turns
    one item into what the network takes; `embed` runs on the device over a batch.
    """

    @property
    def name(self) -> str:
        """The name by which `chiasm.load` finds it."""
        ...

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities it can encode."""
        ...

    @property
    def dim(self) -> int: ...

    @property
    def fingerprint(self) -> Fingerprint: ...

    @property
    def speech_as_text(self) -> bool:
        """True if audio is encoded by its transcript, so that readers must transcribe it."""
        ...

    def prepare(self, item: Item) -> Any:
        """Decodes and preprocesses one item; pure and thread-safe. Raises `BadItem` or `UnsupportedModality`."""
        ...

    def embed(self, prepared: Sequence[Any], modality: str, *, role: Role = "document") -> np.ndarray:
        """Vectors float32 ``[N, D]`` of unit length, of N prepared items of one modality."""
        ...

    def encode(
        self,
        items: Iterable[Any],
        *,
        role: Role = "document",
        tokens: bool = False,
        batch_size: int = 32,
        progress: bool = False,
    ) -> Embeddings:
        """Vectors of items (or of anything that `Item.of` takes), in their order."""
        ...
