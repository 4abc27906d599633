"""What the store gives back: hits, a search's result, and the report of an indexing run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from chiasm.items import Skipped


@dataclass(frozen=True, slots=True)
class Hit:
    """One found item.

    Args:
        id: its name in the store.
        uri: where it came from.
        part: its place inside ``uri``, for example ``"page=3"`` or ``"t=12.5"``.
        modality: ``"text"``, ``"image"``, ``"audio"`` or ``"video"``.
        score: inner product of query and item vector, plus the item's bias if a correction is applied.
        relevance: calibrated, in [0, 1]; None where the store cannot calibrate this query.
        text: words that belong to it.
        meta: facts about it.
        added_at: when it came into the store (UTC).
        rank_text: its rank in the full-text search (1 is best), None if it is not in it or was not asked for.
    """

    id: str
    uri: str
    part: str
    modality: str
    score: float
    relevance: float | None = None
    text: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    added_at: datetime | None = None
    rank_text: int | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON-serializable dictionary; ``rank_text`` is there only in hybrid searches."""
        out: dict[str, Any] = {
            "id": self.id,
            "uri": self.uri,
            "part": self.part,
            "modality": self.modality,
            "score": self.score,
            "relevance": self.relevance,
            "text": self.text,
            "meta": dict(self.meta),
            "added_at": None if self.added_at is None else self.added_at.isoformat(),
        }
        if self.rank_text is not None:
            out["rank_text"] = self.rank_text
        return out


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The answer to one query.

    Args:
        query: the words, or what kind of query it was (``"<image>"``, a path, ...).
        hits: best first; filled even when ``nothing_here`` is True, so that the nearest can be shown anyway.
        nothing_here: True if the best hit is no better than the best hits of queries that have no answer.
        p_value: share of such queries whose best hit is at least as good; None if not calibrated.
        seconds: from call to result, with the encoding of the query.
        calibrated: False if the store cannot tell relevance (no text encoder, or a query that is not text).
    """

    query: str
    hits: list[Hit]
    nothing_here: bool = False
    p_value: float | None = None
    seconds: float = 0.0
    calibrated: bool = False

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self):
        return iter(self.hits)

    def to_json(self) -> dict[str, Any]:
        return {
            "query": self.query,
            "nothing_here": self.nothing_here,
            "p_value": self.p_value,
            "calibrated": self.calibrated,
            "seconds": self.seconds,
            "hits": [hit.to_json() for hit in self.hits],
        }


@dataclass(slots=True)
class AddReport:
    """What an indexing run did. Counts are files where the source is files, items otherwise.

    Args:
        added: new ones.
        updated: known ones whose content changed.
        unchanged: known ones that were left as they are, nothing encoded.
        skipped: those that cannot be read, with the reason.
        vectors_encoded: vectors that the space computed in this run (those from a feature cache do not count).
        seconds: wall time.
        deleted: files that had vanished (only `Store.update` deletes).
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    vectors_encoded: int = 0
    seconds: float = 0.0
    deleted: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "added": self.added,
            "updated": self.updated,
            "unchanged": self.unchanged,
            "deleted": self.deleted,
            "skipped": [s.to_json() for s in self.skipped],
            "vectors_encoded": self.vectors_encoded,
            "seconds": self.seconds,
        }
