"""`Limits`: everything that one request to the server may cost, in one place."""

from __future__ import annotations

from dataclasses import dataclass, fields

from chiasm.errors import BadInput


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request, and all of them together, may ask of the server.

    The defaults suit a machine with a few cores and a store that a handful of people use at once.

    Args:
        body_bytes: size of a request's body. 16 MiB hold a photograph of a telephone as base64.
        batch: inputs of one ``/v1/embeddings`` request.
        text_chars: characters of one text to embed; encoders cut off long before.
        query_chars: characters of a search query, a path filter or an id.
        k: hits of one search; also the number of candidates the calibration judges.
        pixels: pixels of an uploaded picture; 64 million are more than any camera of a telephone writes by default, and
            192 MB in memory.
        thumbnail_pixels: longest side of a thumbnail.
        seconds: time of one request from its first byte to its answer, after which it is given up with 504.
        concurrent: requests at work at once; the next one is told to come back (503).
        connections: open connections, idle ones included.

    Raises:
        BadInput: a limit is not positive.
    """

    body_bytes: int = 16 * 2**20
    batch: int = 256
    text_chars: int = 32_000
    query_chars: int = 2_000
    k: int = 200
    pixels: int = 64_000_000
    thumbnail_pixels: int = 1024
    seconds: float = 30.0
    concurrent: int = 32
    connections: int = 256

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise BadInput(f"must be positive, got {getattr(self, field.name)}", where=f"Limits.{field.name}")
