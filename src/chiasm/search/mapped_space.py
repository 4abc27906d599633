"""`MappedSpace`: a new space whose vectors are carried into the old one, so that everything in a store works as before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chiasm.embeddings import Embeddings
from chiasm.errors import SpaceMismatch
from chiasm.items import Item
from chiasm.learn.alignment.xbt.mapping import SpaceMap
from chiasm.search.header import SpaceRecord, UpgradeRecord
from chiasm.space import Fingerprint, Role, Space

FOLDER = "upgrade"
FILE = "map.safetensors"


class MappedSpace:
    """The new space, then the map: a `Space` of the old space's dimension.

    Args:
        space: the new space.
        map: from `chiasm.learn.alignment.xbt`.
        old: the old space's name, for messages.
    """

    def __init__(self, space: Space, map: SpaceMap, old: str = "") -> None:
        self.inner, self.map = space, map
        self.name = _name(space.name)
        self.modalities = space.modalities
        self.dim = map.old_dim
        self.speech_as_text = space.speech_as_text
        self.fingerprint = _fingerprint(space.fingerprint.model, space.fingerprint.digest, map, old)

    @property
    def grown(self) -> str:
        """What was added to the new space and its fingerprint does not cover, see `ModelSpace.grown`."""
        return str(getattr(self.inner, "grown", ""))

    def prepare(self, item: Item) -> Any:
        return self.inner.prepare(item)

    def embed(self, prepared: Sequence[Any], modality: str, *, role: Role = "document") -> np.ndarray:
        """Vectors float32 ``[N, Do]`` of unit length, in the old space."""
        return self.map(self.inner.embed(prepared, modality, role=role), modality)

    def encode(
        self,
        items: Iterable[Any],
        *,
        role: Role = "document",
        tokens: bool = False,
        batch_size: int = 32,
        progress: Any = False,
    ) -> Embeddings:
        """Vectors of items in their order; token vectors are not mapped and not given."""
        from chiasm.encode.pipeline import encode_items

        return encode_items(self, items, role=role, tokens=False, batch_size=batch_size, progress=progress)


def mapped_record(new: SpaceRecord, map: SpaceMap, old: str) -> SpaceRecord:
    """What a store's header says of the mapped space; needs no network."""
    return SpaceRecord.of(_name(new.name), _fingerprint(new.model, new.digest, map, old))


def _name(new: str) -> str:
    return f"mapped:{new}"


def _fingerprint(model: str, digest: str, map: SpaceMap, old: str) -> Fingerprint:
    weights = hashlib.sha256(f"{digest}|{map.digest}".encode()).hexdigest()
    return Fingerprint(f"{model} mapped to {old or 'the old space'}", "", weights, "", map.old_dim)


def mapped_space(path: Path, space: Space, upgrade: UpgradeRecord) -> MappedSpace:
    """The mapped space of a store whose upgrade is under way.

    Raises:
        BadInput: the map's file is gone or damaged.
        SpaceMismatch: it is not the map that the header names.
    """
    found = SpaceMap.load(path / FOLDER / FILE)
    if found.digest != upgrade.map:
        raise SpaceMismatch(
            f"the map is {found.digest}, the store was upgraded with {upgrade.map}",
            where=str(path / FOLDER / FILE),
            fix="Restore that file, or go back with chiasm upgrade --rollback",
        )
    found.check(space.fingerprint.digest, upgrade.old.digest, str(path))
    return MappedSpace(space, found, upgrade.old.name)
