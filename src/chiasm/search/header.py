"""``chiasm.json``: what a store says about itself before its table is opened."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chiasm.errors import BadInput, SpaceMismatch, StoreError
from chiasm.search.schema import TABLE
from chiasm.space import Fingerprint

# Written is the lowest that says all: a store that was never upgraded is read by older versions too.
PLAIN, FORMAT = 1, 2
FILE = "chiasm.json"


@dataclass(frozen=True, slots=True)
class SpaceRecord:
    """The space whose vectors a store holds.

    Args:
        name: the name by which `chiasm.load` finds it, or ``imported:<name>`` for vectors that came from elsewhere.
        digest: `Fingerprint.digest`; for imported vectors a name for "the same source" chosen by the importer.
        dim: length of a vector.
        model: model and revision as text, for messages.
    """

    name: str
    digest: str
    dim: int
    model: str = ""

    @classmethod
    def of(cls, name: str, fingerprint: Fingerprint) -> SpaceRecord:
        return cls(name, fingerprint.digest, fingerprint.dim, fingerprint.model)

    @property
    def imported(self) -> bool:
        return self.name.startswith("imported:")

    def __str__(self) -> str:
        return f"{self.name}@{self.digest[:4]} ({self.dim}-d)"


@dataclass(frozen=True, slots=True)
class CorrectionRecord:
    """The correction whose biases are in the table.

    Args:
        name: the correction's class name.
        applied: False from just before the biases are written until just after, so that a crash is seen.
        neutral: bias of items that come later: the mean of the fitted ones, so that they are neither favored nor not.
    """

    name: str
    applied: bool
    neutral: float


@dataclass(frozen=True, slots=True)
class UpgradeRecord:
    """A change of the space that is under way, or finished and can still be rolled back.

    Args:
        old, new: the two spaces; while it is under way the header's own space is the new one mapped into the old.
        map: digest of the map in ``upgrade/map.safetensors``.
        since: the newest ``seq`` when it began: what is newer was encoded by the new space.
        phase: ``"serving"``, ``"rolling back"`` or ``"finished"``.
        grown: what the header's ``grown`` was before.
    """

    old: SpaceRecord
    new: SpaceRecord
    map: str
    since: int
    phase: str = "serving"
    grown: str = ""

    @property
    def under_way(self) -> bool:
        """Whether queries are mapped: it has begun and neither finished nor been rolled back."""
        return self.phase != "finished"


@dataclass(frozen=True, slots=True)
class Header:
    """Format version, space, time of creation, correction, upgrade and the name of the table of a store; ``grown`` says whose
    its sounds are, see `chiasm.search.grown`.
    """

    created: str
    space: SpaceRecord | None = None
    correction: CorrectionRecord | None = None
    format: int = PLAIN
    upgrade: UpgradeRecord | None = None
    table: str = TABLE
    grown: str = ""


def new_header(space: SpaceRecord | None) -> Header:
    return Header(datetime.now(UTC).isoformat(timespec="seconds"), space)


def write_header(folder: Path, header: Header) -> None:
    """Replaces the header in one step: a reader sees the old or the new one, never half of it."""
    replace_file(folder / FILE, json.dumps(asdict(header), indent=1).encode())


def read_header(folder: Path) -> Header:
    """Reads the header.

    Raises:
        StoreError: there is none, it cannot be parsed, or a newer Chiasm wrote it.
    """
    path = folder / FILE
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise StoreError("is not a Chiasm store", where=str(folder), fix="Make one with chiasm index") from error
    except OSError as error:
        raise StoreError(f"cannot be read ({error.strerror})", where=str(path)) from error
    except ValueError as error:
        raise _corrupt(path, "is not JSON") from error
    version = raw.get("format") if isinstance(raw, dict) else None
    if not isinstance(version, int):
        raise _corrupt(path, "has no format version")
    if version > FORMAT:
        raise StoreError(
            f"has format {version}, this Chiasm reads up to {FORMAT}",
            where=str(folder),
            fix="Update with pip install -U chiasm",
        )
    try:
        return Header(
            raw["created"],
            _record(SpaceRecord, raw["space"]),
            _record(CorrectionRecord, raw["correction"]),
            version,
            _upgrade(raw.get("upgrade")),
            raw.get("table", TABLE),
            raw.get("grown", ""),
        )
    except (KeyError, TypeError) as error:
        raise _corrupt(path, f"lacks or has a wrong field ({error})") from error


def _record(kind: type, raw: dict[str, Any] | None) -> Any:
    return None if raw is None else kind(**raw)


def _upgrade(raw: dict[str, Any] | None) -> UpgradeRecord | None:
    if raw is None:
        return None
    return UpgradeRecord(**{**raw, "old": SpaceRecord(**raw["old"]), "new": SpaceRecord(**raw["new"])})


def _corrupt(path: Path, what: str) -> StoreError:
    fix = "The vectors are in items.lance and are not touched: restore this file from a backup, or index again"
    return StoreError(f"the header {what}", where=str(path), fix=fix)


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file so that after a crash it holds either its old or its new content."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StoreError(
            f"cannot be written ({error.strerror})", where=str(path), fix="Check free space and rights"
        ) from error


def check_space(stored: SpaceRecord | None, given: SpaceRecord, where: str) -> None:
    """Refuses vectors of another space.

    Raises:
        SpaceMismatch: the digests differ.
    """
    if stored is not None and stored.digest != given.digest:
        raise SpaceMismatch(
            f"the store was built with {stored}, the given space is {given}",
            where=where,
            fix="Re-index with --space, or map it with 'chiasm upgrade'",
        )


def check_upgrade(header: Header, given: SpaceRecord, where: str) -> None:
    """Refuses what may not be written while an upgrade is under way.

    Raises:
        SpaceMismatch: vectors of the old space.
        BadInput: it is being rolled back.
    """
    found = header.upgrade
    if found is None or not found.under_way:
        return
    if found.phase == "rolling back":
        raise BadInput("is being rolled back", where=where, fix="Finish that first: chiasm upgrade --rollback")
    if given.digest == found.old.digest:
        raise SpaceMismatch(
            f"the store goes over from {found.old} to {found.new}, and what is added must come from the latter",
            where=where,
            fix="Leave --space away, or go back first with chiasm upgrade --rollback",
        )


def check_dim(dim: int, given: int, where: str) -> None:
    """Raises `BadInput` if vectors have another length than the store's."""
    if dim != given:
        raise BadInput(f"vectors have {given} dimensions, the store has {dim}", where=where)
