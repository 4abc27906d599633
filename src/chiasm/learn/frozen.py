"""Frozen features of items in a space: every item is encoded once and kept by its content, so heads train in seconds.

    >>> found = frozen(space, table.a, ("vector", "image_features"), progress=True)
    >>> source = found.features(sentence_embedding="image_features")      # what `chiasm.learn.train` reads

Kinds of features (float):

    vector            ``[N, D]``        the space's vector
    image_features    ``[N, 1280]``     what the pocket space's image network gives before its bridge
    patches           ``[N, 49, 1280]`` its map of 7 x 7 cells, row by row;  ``patches16``: 4 x 4 cells, ``[N, 16, 1280]``
    tokens            ``[N, L, D]``     token or patch vectors of the space, as many as each item has

An interrupted run goes on where it stopped, because each item goes into the user's feature cache when it is encoded.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chiasm.embeddings import unit
from chiasm.encode.cache import FeatureCache
from chiasm.encode.pipeline import Progress, cpus, shown
from chiasm.encode.read import read
from chiasm.errors import BadInput, BadItem, ChiasmError, UnsupportedModality, unknown_name
from chiasm.items import Item
from chiasm.learn.features import Features
from chiasm.learn.pair_table import Entry
from chiasm.space import Role

KINDS = ("vector", "image_features", "patches", "patches16", "tokens")
_NETWORK_KINDS = ("image_features", "patches", "patches16")
# Part of the cache's key: raise it when the meaning of a kind changes.
_VERSION = 1
# Items that are prepared at once.
WINDOW = 256


@dataclass
class Frozen:
    """Features of N items.

    Args:
        arrays: kind -> ``[N, ...]``; rows of items that could not be encoded are zero. Float32 in memory, or float16 memory
            maps if a folder was given.
        tokens: N arrays ``[L_i, D]`` (empty for failed items), if they were asked for.
        failed: row -> why it could not be encoded.
        encoded: items that went through the network; the others came from the cache.
    """

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    tokens: list[np.ndarray] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    encoded: int = 0

    def features(self, **names: str) -> Features:
        """A source for `chiasm.learn.Pairs`.

        Args:
            **names: what the model reads = a kind, for example ``sentence_embedding="vector"`` or
                ``input_features="patches16"``.

        Raises:
            UnknownName: a kind that was not made.
        """
        for kind in names.values():
            if kind not in self.arrays and not (kind == "tokens" and self.tokens):
                raise unknown_name("kind of these features", kind, [*self.arrays, *(["tokens"] if self.tokens else [])])
        dense = {name: self.arrays[kind] for name, kind in names.items() if kind != "tokens"}
        ragged = next((name for name, kind in names.items() if kind == "tokens"), None)
        if ragged is None:
            return Features(dense)
        width = next((t.shape[1] for t in self.tokens if len(t)), 1)
        return Features.ragged(
            ragged, [t if len(t) else np.zeros((1, width), np.float32) for t in self.tokens], **dense
        )

    def reduced(self, kind: str, rows: Sequence[int] | np.ndarray, size: int = 256, *, seed: int = 0) -> Frozen:
        """The same with one kind on its principal axes, which are fitted on some rows only (those of training).

        Args:
            kind: ``"patches"``, ``"patches16"``, ``"image_features"`` or ``"vector"``.
            rows: the items the axes are fitted on.
            size: number of axes; 256.
            seed: of the sample of at most 20,000 vectors.

        Raises:
            UnknownName: a kind that was not made.
            BadInput: fewer vectors than axes.
        """
        from sklearn.decomposition import PCA

        if kind not in self.arrays:
            raise unknown_name("kind of these features", kind, self.arrays)
        values = self.arrays[kind]
        fit = np.asarray(values[np.asarray(rows)], dtype=np.float32).reshape(-1, values.shape[-1])
        if len(fit) > 20_000:
            fit = fit[np.random.default_rng(seed).choice(len(fit), 20_000, replace=False)]
        if size > min(fit.shape):
            raise BadInput(f"{len(fit)} vectors of length {fit.shape[1]} have no {size} axes", where="Frozen.reduced")
        axes = PCA(size, svd_solver="covariance_eigh").fit(fit)
        flat = np.asarray(values, dtype=np.float32).reshape(-1, values.shape[-1])
        moved = np.concatenate([axes.transform(flat[i : i + 8192]) for i in range(0, len(flat), 8192)])
        arrays = {**self.arrays, kind: moved.reshape(*values.shape[:-1], size).astype(np.float32)}
        return Frozen(arrays, self.tokens, self.failed, self.encoded)


def frozen(
    space: Any,
    entries: Sequence[Entry],
    kinds: Sequence[str] = ("vector",),
    *,
    role: Role = "document",
    folder: str | Path | None = None,
    cache: FeatureCache | bool | None = None,
    batch_size: int = 32,
    modality: str | None = None,
    progress: Progress = False,
) -> Frozen:
    """Encodes items, or takes them from the cache.

    A file with several items (frames of a clip, segments of a recording) becomes the mean of their vectors.

    Args:
        space: a space of `chiasm.load`.
        entries: the items (`chiasm.learn.readers`).
        kinds: which features; see above.
        role: ``"query"`` or ``"document"``, for models with prompts.
        folder: where float16 memory maps are written, for sets that do not fit into memory.
        cache: None or True for the user's cache, False for none, or a cache of your own.
        batch_size: items that go through the network together.
        modality: what all of them must be (`modality_of`); others are noted as failed. None takes any mixture.
        progress: a function of (items done, items), or True for a progress bar.

    Raises:
        UnknownName: a kind that does not exist.
        UnsupportedModality: the space has no encoder for an item's modality, or does not have these features.
        BadInput: no items.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_name("kind of features", kind, KINDS)
    if not len(entries):
        raise BadInput("no items", where="frozen")
    own = cache is None or cache is True
    store = FeatureCache() if own else (cache if isinstance(cache, FeatureCache) else None)
    try:
        run = _Run(space, tuple(kinds), role, Path(folder) if folder is not None else None, store, len(entries))
        run.modality = modality
        with (
            shown(progress, len(entries), "items") as tell,
            ThreadPoolExecutor(min(cpus(), 8), "chiasm-prepare") as pool,
        ):
            for start in range(0, len(entries), WINDOW):
                rows = range(start, min(start + WINDOW, len(entries)))
                missing = [row for row in rows if not run.from_cache(row, entries[row])]
                for batch in run.prepared(missing, entries, pool, batch_size):
                    run.encode(batch, entries)
                tell(rows.stop)
        return run.found
    finally:
        if own and store is not None:
            store.close()


class _Run:
    """One call of `frozen`."""

    def __init__(
        self, space: Any, kinds: tuple[str, ...], role: Role, folder: Path | None, cache: FeatureCache | None, n: int
    ) -> None:
        self.space, self.kinds, self.role, self.folder, self.cache, self.n = space, kinds, role, folder, cache, n
        self.digest = space.fingerprint.digest
        self.modality: str | None = None
        self.found = Frozen(tokens=[np.zeros((0, space.dim), np.float32)] * n if "tokens" in kinds else [])

    def _key(self, kind: str) -> str:
        return f"frozen{_VERSION}|{kind}|{self.role}"

    def from_cache(self, row: int, entry: Entry) -> bool:
        if self.cache is None:
            return False
        values = {}
        for kind in self.kinds:
            kept = self.cache.get(entry.sha256, self.digest, self._key(kind))
            if kept is None:
                return False
            values[kind] = kept.vectors
        for kind, value in values.items():
            self._store(row, kind, value)
        return True

    def _store(self, row: int, kind: str, value: np.ndarray) -> None:
        """Keeps ``[L, D]`` of an item; pooled kinds have L = 1."""
        if kind == "tokens":
            self.found.tokens[row] = value
            return
        shape = value.shape[1:] if kind in ("vector", "image_features") else value.shape
        if kind not in self.found.arrays:
            self.found.arrays[kind] = self._array(kind, (self.n, *shape))
        self.found.arrays[kind][row] = value.reshape(shape)

    def _array(self, kind: str, shape: tuple[int, ...]) -> np.ndarray:
        if self.folder is None:
            return np.zeros(shape, np.float32)
        self.folder.mkdir(parents=True, exist_ok=True)
        return np.lib.format.open_memmap(self.folder / f"{kind}.npy", "w+", np.float16, shape)

    def prepared(
        self, rows: Sequence[int], entries: Sequence[Entry], pool: ThreadPoolExecutor, batch_size: int
    ) -> Iterator[list[tuple[int, list[Item], list[Any]]]]:
        """Batches of items of one modality, decoded and preprocessed in threads; failed ones are noted."""

        def one(row: int) -> tuple[int, list[Item], list[Any] | str]:
            try:
                items = items_of(entries[row], self.space.speech_as_text)
                if self.modality not in (None, items[0].modality):
                    return row, [], f"is {items[0].modality}, not {self.modality}"
                return row, items, [self.space.prepare(item) for item in items]
            except UnsupportedModality:
                raise
            except (ChiasmError, OSError, MemoryError) as error:
                return row, [], getattr(error, "what", None) or str(error) or type(error).__name__

        groups: dict[str, list[tuple[int, list[Item], list[Any]]]] = {}
        for row, items, made in pool.map(one, rows):
            if isinstance(made, str):
                self.found.failed[row] = made
            else:
                groups.setdefault(items[0].modality, []).append((row, items, made))
        for group in groups.values():
            if group[0][1][0].modality == "text":  # texts of similar length share a batch, so little is padded
                group.sort(key=lambda entry: len(entry[2][0]))
            for start in range(0, len(group), batch_size):
                yield group[start : start + batch_size]

    def encode(self, batch: list[tuple[int, list[Item], list[Any]]], entries: Sequence[Entry]) -> None:
        flat = [one for _, _, made in batch for one in made]
        modality = batch[0][1][0].modality
        try:
            values = self._values(flat, modality)
        except UnsupportedModality:
            raise
        except Exception as error:
            if len(batch) > 1:  # one of them may be the cause; the others must not suffer
                for one in batch:
                    self.encode([one], entries)
                return
            self.found.failed[batch[0][0]] = f"the network fails on it ({type(error).__name__}: {str(error)[:200]})"
            return
        at = 0
        for row, items, made in batch:
            part = {kind: value[at : at + len(made)] for kind, value in values.items()}
            at += len(made)
            kept = {kind: _one(kind, value) for kind, value in part.items()}
            if not all(np.isfinite(value).all() for value in kept.values()):
                self.found.failed[row] = "the network gives NaN for it"
                continue
            self.found.encoded += 1
            for kind, value in kept.items():
                self._store(row, kind, value)
                if self.cache is not None:
                    self.cache.put(
                        entries[row].sha256, self.digest, [{"modality": items[0].modality}], value, self._key(kind)
                    )

    def _values(self, flat: list[Any], modality: str) -> dict[str, Any]:
        """kind -> one array an item."""
        out: dict[str, Any] = {}
        if any(kind in _NETWORK_KINDS for kind in self.kinds):
            out |= _network_features(self.space, flat, modality, self.kinds)
        if "tokens" in self.kinds:
            vectors, tokens, mask = self.space.embed_tokens(flat, modality, role=self.role)
            out["tokens"] = [one[kept] for one, kept in zip(tokens, mask)]
            out["vector"] = vectors
        if "vector" in self.kinds and "vector" not in out:
            out["vector"] = self.space.embed(flat, modality, role=self.role)
        return {kind: out[kind] for kind in self.kinds}


def _one(kind: str, values: Any) -> np.ndarray:
    """What is kept of an entry's items: the mean direction or mean, and all tokens one after the other."""
    if kind == "tokens":
        return np.concatenate([np.asarray(v, np.float32) for v in values])
    mean = np.asarray(values, np.float32).mean(axis=0)
    if kind == "vector":
        return unit(mean[None])
    return mean[None] if kind == "image_features" else mean


def items_of(entry: Entry, transcribe: bool) -> list[Item]:
    """The items of an entry that are of the kind of its first one that is not text."""
    if isinstance(entry.source, str):
        return [Item.of(entry.source)]
    if isinstance(entry.source, Path):
        items = read(entry.source, transcribe=transcribe)
    else:
        # A file of our own naming: no name inside an archive ever becomes a path.
        with tempfile.TemporaryDirectory(prefix="chiasm-") as folder:
            path = Path(folder) / "member"
            path.write_bytes(entry.bytes())
            try:
                items = read(path, transcribe=transcribe)
            except BadItem as error:
                raise BadItem(error.what, where=entry.name, fix=error.fix) from error
    media = next((item.modality for item in items if item.modality != "text"), "text")
    return [item for item in items if item.modality == media]


# Items that are read to tell a side's modality.
_LOOKED_AT = 9


def modality_of(entries: Sequence[Entry]) -> str:
    """The modality of a side: that of most of its first items that can be read (a broken picture may look like a text).

    Raises:
        BadInput: none can.
    """
    seen: Counter[str] = Counter()
    for entry in entries:
        if entry.is_text:
            return "text"
        with contextlib.suppress(ChiasmError, OSError):
            seen[items_of(entry, False)[0].modality] += 1
        if seen.total() == _LOOKED_AT:
            break
    if seen:
        return seen.most_common(1)[0][0]
    raise BadInput("not one item of a side can be read", where=entries[0].name if entries else "pairs")


def _network_features(
    space: Any, prepared: Sequence[Any], modality: str, kinds: Sequence[str]
) -> dict[str, np.ndarray]:
    """What the pocket space's image route gives on the way: features, patches and the vector, in one pass."""
    from chiasm.encode.model_space import CPU_ROWS

    route = pocket_route(space)
    if route is None or modality not in ("image", "video"):
        raise UnsupportedModality(
            f"{space.name} has no {', '.join(k for k in kinds if k in _NETWORK_KINDS)} for {modality}",
            fix="Only pictures in the pocket space have them; ask for 'vector' or 'tokens'",
        )
    step = CPU_ROWS if space.device.type == "cpu" else len(prepared)
    grids = {kind: grid for kind, grid in (("patches", 7), ("patches16", 4)) if kind in kinds}
    parts: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds if kind != "tokens"}
    with torch.inference_mode():
        for start in range(0, len(prepared), step):
            features = route[0].preprocess(prepared[start : start + step])
            features = {k: v.to(space.device) if isinstance(v, torch.Tensor) else v for k, v in features.items()}
            for kind, grid in grids.items():
                parts[kind].append(route[0].cells(features, grid).float().cpu().numpy())
            if len(grids) == len(parts):
                continue
            for module in route:
                features = module(features)
            if "vector" in parts:
                vectors = torch.nn.functional.normalize(features["sentence_embedding"], dim=1)
                parts["vector"].append(vectors.float().cpu().numpy())
            if "image_features" in parts:
                parts["image_features"].append(features["image_features"].float().cpu().numpy())
    return {kind: np.concatenate(blocks) for kind, blocks in parts.items()}


def pocket_route(space: Any) -> list[Any] | None:
    """The modules of a space's image route if they begin with the pocket image network, else None."""
    from sentence_transformers.base.modules import Router

    model = getattr(space, "model", None)
    if model is None or not isinstance(model[0], Router) or "image" not in model[0].sub_modules:
        return None
    from chiasm.encode.pocket.image import PocketImage

    modules = list(model[0].sub_modules["image"])
    return modules if isinstance(modules[0], PocketImage) else None
