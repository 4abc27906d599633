"""Captioned photographs of ``CHIASM_DATA`` in a space: encoded once, kept in the cache folder, read by many claims."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chiasm.claims.data import Data
from chiasm.embeddings import Embeddings
from chiasm.errors import BadInput
from chiasm.measure.positives import Positives

# Where each set keeps its table, and which column holds the captions.
_SETS = {
    "aerial_captions_en": ("captions.jsonl", "captions_en"),
    "photo_captions_en_mini": ("items.jsonl", "captions_en"),
    "photo_captions_vi": ("captions.jsonl", "captions_vi"),
}


@dataclass(frozen=True)
class Captioned:
    """Photographs and their sentences.

    Args:
        images: float32 ``[N, D]``.
        split: ``[N]``, the split of each photograph.
        texts: float32 ``[C, D]``, one a sentence.
        image_of: int ``[C]``, the photograph of each sentence.
        sentences: C strings.
        labels: N class names, empty strings where the set has none.
    """

    images: np.ndarray
    split: np.ndarray
    texts: np.ndarray
    image_of: np.ndarray
    sentences: Sequence[str]
    labels: Sequence[str]

    def rows(self, split: str) -> np.ndarray:
        """The photographs of a split."""
        return np.flatnonzero(self.split == split)

    def captions_of(self, images: np.ndarray) -> np.ndarray:
        """The sentences of some photographs."""
        return np.flatnonzero(np.isin(self.image_of, images))

    def positives(self, captions: np.ndarray, images: np.ndarray) -> Positives:
        """Which of ``images`` answer which of ``captions``: all that have an equal sentence (columns count within ``images``)."""
        column = np.full(len(self.split), -1)
        column[images] = np.arange(len(images))
        number = {sentence: i for i, sentence in enumerate(dict.fromkeys(self.sentences))}
        sentence_of = np.array([number[s] for s in self.sentences])
        place: list[list[int]] = [[] for _ in number]
        for sentence, image in zip(sentence_of, self.image_of, strict=True):
            if column[image] >= 0:
                place[sentence].append(int(column[image]))
        right = [np.unique(p).astype(np.int64) for p in place]
        return Positives.of([right[sentence_of[c]] for c in captions], len(captions), len(images))


def captioned(data: Data, name: str, *, space: Any = "pocket") -> Captioned | None:
    """A set of captioned photographs in a space, or None if the set is not on this machine.

    Args:
        data: where real data is.
        name: ``"aerial_captions_en"``, ``"photo_captions_en_mini"`` or ``"photo_captions_vi"``.
        space: a space or its name. The vectors are kept in the cache folder by the hash of the set and the space's digest.

    Raises:
        BadInput: a set that this function does not know.
    """
    folder = _folder(data, name)
    if folder is None:
        return None
    from chiasm.encode import load
    from chiasm.encode.cache import default_folder

    if isinstance(space, str):
        space = load(space)
    items, column = _items(folder, name)
    sentences = [s for item in items for s in item[column]]
    image_of = np.repeat(np.arange(len(items)), [len(item[column]) for item in items])
    kept = default_folder() / "captioned" / f"{name}-{data.used[name]}-{space.fingerprint.digest}.safetensors"
    if kept.exists():
        vectors = Embeddings.load(kept).vectors
    else:
        pictures = list(_pictures(folder, [item["id"] for item in items]))
        vectors = np.concatenate([space.encode(pictures).vectors, space.encode(sentences).vectors])
        kept.parent.mkdir(parents=True, exist_ok=True)
        kinds = ["image"] * len(items) + ["text"] * len(sentences)
        Embeddings(vectors, [str(i) for i in range(len(vectors))], kinds, space=space.fingerprint.digest).save(kept)
    return Captioned(
        vectors[: len(items)],
        np.array([item["split"] for item in items]),
        vectors[len(items) :],
        image_of,
        sentences,
        [item.get("label", "") for item in items],
    )


@dataclass(frozen=True)
class CaptionedPatches:
    """Photographs as patch vectors, and their sentences.

    Args:
        patches: float32 ``[N, grid * grid, D]``: features of the pocket network, projected on the main directions of
            the training photographs and scaled to unit variance over all.
        split: ``[N]``, the split of each photograph.
        image_of: int ``[C]``, the photograph of each sentence.
        sentences: C strings.
        labels: N class names, empty strings where the set has none.
    """

    patches: np.ndarray
    split: np.ndarray
    image_of: np.ndarray
    sentences: Sequence[str]
    labels: Sequence[str]


def captioned_patches(data: Data, name: str, *, grid: int = 4, dim: int = 256) -> CaptionedPatches | None:
    """A set of captioned photographs as patches of the pocket network, or None if the set is not on this machine.

    Args:
        data: where real data is.
        name: as in `captioned`.
        grid: the raster.
        dim: length D of a patch vector, at most 1280.
    """
    folder = _folder(data, name)
    if folder is None:
        return None
    from safetensors.numpy import load_file, save_file

    from chiasm.encode.cache import default_folder

    items, column = _items(folder, name)
    split = np.array([item["split"] for item in items])
    kept = default_folder() / "captioned" / f"{name}-{data.used[name]}-cells{grid}x{dim}.safetensors"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        cells = _cells(_pictures(folder, [item["id"] for item in items]), grid)
        save_file({"patches": _projected(cells, split == "train", dim)}, kept)
    return CaptionedPatches(
        load_file(kept)["patches"].astype(np.float32),
        split,
        np.repeat(np.arange(len(items)), [len(item[column]) for item in items]),
        [s for item in items for s in item[column]],
        [item.get("label", "") for item in items],
    )


def _folder(data: Data, name: str) -> Path | None:
    if name not in _SETS:
        raise BadInput(
            f"{name!r} is not a set of captioned photographs", where="captioned", fix=f"Use one of {', '.join(_SETS)}"
        )
    return data.folder(name)


def _items(folder: Path, name: str) -> tuple[list[dict[str, Any]], str]:
    """The table of a set, and the column that holds its captions."""
    table, column = _SETS[name]
    return [json.loads(line) for line in (folder / table).read_text(encoding="utf-8").splitlines()], column


def _cells(pictures: Any, grid: int) -> np.ndarray:
    """Float16 ``[N, grid * grid, 1280]``."""
    from itertools import islice

    import torch

    from chiasm.encode.pocket.image import PocketImage

    network = PocketImage.pretrained().eval()
    parts, stream = [], iter(pictures)
    with torch.inference_mode():
        while batch := list(islice(stream, 8)):
            parts.append(network.cells(network.preprocess(batch), grid).half().numpy())
    return np.concatenate(parts)


def _projected(cells: np.ndarray, train: np.ndarray, dim: int) -> np.ndarray:
    """The main directions of the training cells, float16; nothing is learned from the other photographs."""
    known = cells[train].reshape(-1, cells.shape[2]).astype(np.float32)
    mean = known.mean(axis=0)
    covariance = np.cov(known - mean, rowvar=False)
    values, vectors = np.linalg.eigh(covariance)
    axes = vectors[:, ::-1][:, :dim]
    scale = np.sqrt(values[::-1][:dim].mean())
    return (((cells.astype(np.float32) - mean) @ axes) / scale).astype(np.float16)


def _pictures(folder: Path, ids: list[str]) -> Any:
    from PIL import Image

    with zipfile.ZipFile(folder / "images.zip") as archive:
        names = {Path(n).name: n for n in archive.namelist()}
        for i in ids:
            with Image.open(io.BytesIO(archive.read(names[i if i in names else f"{i}.jpg"]))) as picture:
                yield picture.convert("RGB")
