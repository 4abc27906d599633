"""`Desk`: what the server does with its store, in threads, so that the event loop stays free for everybody else."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from chiasm.errors import BadInput, BadItem, UnknownName
from chiasm.items import Item
from chiasm.serve.limits import Limits
from chiasm.serve.metrics import Metrics
from chiasm.serve.requests import AudioPart, EmbeddingsBody, Filters, ImagePart, Part, SearchOptions
from chiasm.serve.uploads import decode_base64, read_upload

if TYPE_CHECKING:
    from chiasm.search import Store
    from chiasm.space import Space

T = TypeVar("T")

_BATCH = 32  # inputs embedded in one go: searches of others get their turn in between
_WORD = re.compile(r"\w+|[^\w\s]")
# What the page may know of an item; vectors and the correction's bias stay inside.
_PRIVATE = ("vector", "tokens", "bias")


class Desk:
    """The store with the threads that work on it.

    Networks run in one thread: a second one would only fight over the same cores, and tokenizers are not thread-safe.
    Files (thumbnails, rows) have threads of their own, so that a page of pictures does not wait for a long batch.
    """

    def __init__(self, store: Store, limits: Limits, metrics: Metrics) -> None:
        self.store, self.limits, self.metrics = store, limits, metrics
        self._network = ThreadPoolExecutor(1, "chiasm-network")
        self._files = ThreadPoolExecutor(2, "chiasm-files")

    async def in_network_thread(self, work: Callable[..., T], *args: Any) -> T:
        """Runs ``work`` in its turn; if the caller is cancelled before it begins, it is dropped."""
        return await asyncio.get_running_loop().run_in_executor(self._network, work, *args)

    async def in_file_thread(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._files, work, *args)

    def close(self) -> None:
        self._network.shutdown(wait=False, cancel_futures=True)
        self._files.shutdown(wait=False, cancel_futures=True)

    # Everything below blocks and is called in one of the threads.

    @property
    def space(self) -> Space:
        return self.store.space

    def search(self, query: Any, kind: str, options: SearchOptions) -> dict[str, Any]:
        """The store's result as JSON; ``kind`` names what ``query`` is: text, image, audio or vector."""
        found = self.store.search(
            query, options.k, **_filters(options), hybrid=options.hybrid, rate=options.rate, unique=options.unique
        )
        self.metrics.search(kind, found.nothing_here)
        return found.to_json()

    def search_upload(self, data: bytes | str, kind: str, options: SearchOptions) -> dict[str, Any]:
        raw = decode_base64(data, kind) if isinstance(data, str) else data
        return self.search(self._read(raw, kind, kind), kind, options)

    def similar(self, id: str, filters: Filters) -> dict[str, Any]:
        self.row(id)  # `Store.similar` also takes a path, which no client may name
        found = self.store.similar(id, filters.k, **_filters(filters))
        self.metrics.search("item", found.nothing_here)
        return found.to_json()

    def row(self, id: str) -> dict[str, Any]:
        """One item as JSON.

        Raises:
            UnknownName: the store has no such item.
        """
        try:
            row = self.store.get(id)
        except BadInput as error:
            raise UnknownName("the store has no item with this id", where="id") from error
        public = {name: value for name, value in row.items() if name not in _PRIVATE}
        return public | {"added_at": public["added_at"].isoformat()}

    def thumbnail(self, id: str, size: int, known: str) -> tuple[bytes, str]:
        """JPEG or PNG bytes and their ETag; no bytes if the ETag is the one that the client has in ``known``.

        Raises:
            UnknownName: there is no such item, or nothing of it can be shown as a picture.
        """
        from chiasm.encode.thumbnails import thumbnail

        row = self.row(id)
        key = json.dumps([row["sha256"], row["uri"], row["part"], size])
        tag = f'"{hashlib.sha256(key.encode()).hexdigest()[:32]}"'
        if known in ("*", tag) or tag in [one.strip().removeprefix("W/") for one in known.split(",")]:
            return b"", tag
        if not row["uri"] or (row["modality"] == "text" and not row["part"]):
            raise UnknownName("this item has no picture", where="id")
        try:
            return thumbnail(row["uri"], row["part"], size=size), tag
        except BadItem as error:
            raise UnknownName(f"this item's picture cannot be shown ({error.what})", where="id") from error

    def input_item(self, entry: str | Part, index: int) -> Item:
        """One entry of an embeddings request.

        Raises:
            BadInput: it is empty, too long or cannot be read; it is named by its index.
        """
        where = f"input[{index}]"
        if isinstance(entry, ImagePart):
            return self._read(decode_base64(entry.image_url.url, where), "image", where, id=str(index))
        if isinstance(entry, AudioPart):
            return self._read(decode_base64(entry.input_audio.data, where), "audio", where, id=str(index))
        text = entry if isinstance(entry, str) else entry.text
        if not text.strip():
            raise BadInput("is empty", where=where)
        if len(text) > self.limits.text_chars:
            raise BadInput(f"is longer than {self.limits.text_chars} characters", where=where)
        return Item.of(text, id=str(index))

    def check_model(self, body: EmbeddingsBody) -> None:
        """Refuses another model than the store's: its vectors could not be compared with the store's.

        Raises:
            UnknownName: another model.
            BadInput: another number of dimensions.
        """
        space = self.space
        if body.model not in (space.name, space.fingerprint.model):
            raise UnknownName("is not the model of this server", where="model", fix=f"Use {space.name!r}")
        if body.dimensions not in (None, space.dim):
            raise BadInput(f"this space has {space.dim} dimensions", where="dimensions", fix="Leave it out")

    def embed(self, items: Sequence[Item], body: EmbeddingsBody) -> np.ndarray:
        """Vectors float32 ``[N, D]`` of a batch."""
        vectors = self.space.encode(items, role=body.input_type).vectors
        for item in items:
            self.metrics.embedded(item.modality)
        return np.ascontiguousarray(vectors, dtype="<f4")

    def _read(self, data: bytes, modality: str, where: str, *, id: str = "") -> Item:
        said = modality == "audio" and self.space.speech_as_text
        return read_upload(data, modality, where, max_pixels=self.limits.pixels, transcribe=said, id=id)

    async def embeddings(self, body: EmbeddingsBody) -> dict[str, Any]:
        """The whole answer of ``/v1/embeddings``.

        It goes through the threads in small steps, so that others get their turn and a client's time limit holds.
        """
        entries = [body.input] if isinstance(body.input, str) else body.input
        if not 1 <= len(entries) <= self.limits.batch:
            raise BadInput(f"holds {len(entries)} entries, 1 to {self.limits.batch} are possible", where="input")
        await self.in_network_thread(self.check_model, body)
        items = [await self.in_file_thread(self.input_item, entry, index) for index, entry in enumerate(entries)]
        parts = [
            await self.in_network_thread(self.embed, items[start : start + _BATCH], body)
            for start in range(0, len(items), _BATCH)
        ]
        rows = np.concatenate(parts)
        encode = _as_base64 if body.encoding_format == "base64" else np.ndarray.tolist
        words = sum(len(_WORD.findall(item.content)) for item in items if item.modality == "text")
        return {
            "object": "list",
            "data": [{"object": "embedding", "index": i, "embedding": encode(row)} for i, row in enumerate(rows)],
            "model": body.model,
            "usage": {"prompt_tokens": words, "total_tokens": words},
        }

    def warm_up(self) -> None:
        """Loads the networks, so that the first user does not wait for them."""
        self.space.encode(["a picture"], role="query")


def _as_base64(row: np.ndarray) -> str:
    return base64.b64encode(row.tobytes()).decode()


def _filters(options: Filters) -> dict[str, Any]:
    return {
        "modality": options.modality,
        "path": options.path,
        "since": options.since,
        "until": options.until,
    }
