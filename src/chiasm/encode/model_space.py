"""`ModelSpace`: a space over one `SentenceTransformer`, so that training and saving stay plain sentence-transformers.

A route whose input module decodes cheaply per item may offer one method beside those of sentence-transformers::

    def prepare_one(self, content) -> np.ndarray      # or a tensor; pure and thread-safe, called in worker threads

Then ``preprocess`` must take a list of what it returned. Without it, pictures and sounds go one by one through the
model's own processor. Texts stay strings until their batch is put together, because padding depends on the neighbors.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers.base.modules import Router, Transformer
from torch import Tensor

from chiasm.embeddings import Embeddings, unit
from chiasm.encode.hub import call_as_trained, quiet
from chiasm.encode.weights import grown_digest, preprocessing_digest, version_stamp, weights_digest
from chiasm.errors import BadItem, UnsupportedModality
from chiasm.items import Item, Sound
from chiasm.space import Fingerprint, Role

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# On a CPU small batches keep the activations in the cache: EfficientNet-Lite0 takes 1.2 to 1.8 times as long at 32.
CPU_ROWS = 8
# A recording longer than the model hears at once is heard at this many evenly spaced places.
WINDOWS = 6
WINDOW_SECONDS = 30.0  # for models that state no limit of their own
# Pictures longer than this many times their width are cut to their middle: resizing them would fill the memory.
LONGEST = 20
SMALLEST = 8  # pixels; processors mistake a smaller side for the color channels


class ModelSpace:
    """A space of one model. `chiasm.load` makes it; ``ModelSpace(model)`` wraps a model of your own.

    Args:
        model: a `SentenceTransformer`; it stays available (and trainable) as ``space.model``.
        name: the name `chiasm.load` finds it by.
        revision: hub commit or package version.
    """

    def __init__(self, model: SentenceTransformer, name: str = "", *, revision: str = "") -> None:
        call_as_trained(model)
        self.model = model
        self._name = name or type(model[0]).__name__
        self._revision = revision
        # Fast tokenizers keep the padding of a call as state; two threads would see each other's.
        self._tokenizing = threading.Lock()
        self._dim: int | None = None
        self._fingerprint: tuple[Any, Fingerprint] | None = None
        native = {m for m in model.modalities if isinstance(m, str)}
        # What becomes of each modality: a frame of a clip is a picture, and speech is text, if the model has no better.
        self._routes = {m: m for m in ("text", "image", "audio") if m in native}
        if "image" in native or "video" in native:
            self._routes["video"] = "image" if "image" in native else "video"
        if "audio" not in native and "text" in native:
            self._routes["audio"] = "text"

    def __repr__(self) -> str:
        return f"ModelSpace({self._name!r}, {', '.join(self.modalities)})"

    @property
    def name(self) -> str:
        return self._name

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self._routes)

    @property
    def speech_as_text(self) -> bool:
        """True if a recording in which somebody speaks is found by what is said in it: the model has no audio encoder, or
        one for sounds that are not speech (its input module says ``speech_as_text``).
        """
        return self._routes.get("audio") == "text" or self._reads_speech

    @property
    def _reads_speech(self) -> bool:
        if self._routes.get("audio") != "audio" or "text" not in self._routes:
            return False
        return bool(getattr(self._input_module("audio"), "speech_as_text", False))

    @property
    def grown(self) -> str:
        """Hash of what was added to the space after its first vectors and changed none of them; ``""`` if nothing was.

        The fingerprint does not cover it, so that older stores stay in use; caches must.
        """
        return grown_digest(self.model)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dim(self) -> int:
        """Length of a vector, measured once: configurations of two-tower models do not always tell."""
        if self._dim is None:
            self._dim = int(self._sentence_vectors(self._probe(), "document").shape[1])
        return self._dim

    @property
    def fingerprint(self) -> Fingerprint:
        """Hashed at first use (about half a second per GB) and again after the weights have changed."""
        stamp = (version_stamp(self.model), tuple(sorted(self.model.prompts.items())), self.model.truncate_dim)
        if self._fingerprint is None or self._fingerprint[0] != stamp:
            hashes = weights_digest(self.model), preprocessing_digest(self.model)
            self._fingerprint = stamp, Fingerprint(self._name, self._revision, *hashes, self.dim)
        return self._fingerprint[1]

    def save(self, path: str | Path) -> None:
        """Writes a folder that `chiasm.load` and `SentenceTransformer` read."""
        with quiet():
            self.model.save(str(path), create_model_card=False)

    def prepare(self, item: Item) -> Any:
        """Decodes and preprocesses one item; thread-safe, and the item is not changed.

        Returns:
            A string for text and for speech, else what the network takes: tensors by name, or the array of the
            route's ``prepare_one``.

        Raises:
            BadItem: a picture that cannot be decoded, an empty recording, or speech without a transcript.
            UnsupportedModality: the model has no encoder for it.
        """
        where = item.uri or item.id
        route = self._route(item.modality, where)
        if route == "text" or (route == "audio" and self._reads_speech and item.text.strip()):
            return _text_of(item, where)
        content = _sound_of(item, where) if route == "audio" else _picture_of(item, where)
        module = self._input_module(route)
        hook = getattr(module, "prepare_one", None)
        try:
            if hook is not None:
                return hook(content)
            if isinstance(content, Sound):
                return self._hear(content, module)
            return self._features([[content] if route == "video" else content], route, "document")
        except (ValueError, OSError, ArithmeticError) as error:  # what processors raise on odd pictures and sounds
            raise BadItem(f"the model's processor refuses it ({error})", where=where) from error

    def embed(self, prepared: Sequence[Any], modality: str, *, role: Role = "document") -> np.ndarray:
        """Vectors of N prepared items of one modality.

        A vector does not depend on what else is in the batch, up to rounding.

        Args:
            prepared: what `prepare` returned.
            modality: of all of them.
            role: chooses the model's prompt and, in a model with separate encoders, the query's or document's.

        Returns:
            float32 ``[N, D]`` of unit length.

        Raises:
            UnsupportedModality: the model has no encoder for it.
        """
        route = self._route(modality)
        if route == "audio" and any(isinstance(one, str) for one in prepared):  # speech among the sounds
            return self._embed_said(prepared, role)
        vectors = np.empty((len(prepared), self.dim), dtype=np.float32)
        for rows in self._batches(prepared, route):
            features, counts = self._collate([prepared[i] for i in rows], route, role)
            found = self._sentence_vectors(features, role)
            if counts is not None:  # several windows of one recording: their mean direction
                found = unit(np.add.reduceat(unit(found), np.cumsum([0, *counts[:-1]]), axis=0))
            vectors[rows] = found
        return unit(vectors)

    def _embed_said(self, prepared: Sequence[Any], role: Role) -> np.ndarray:
        said = np.array([isinstance(one, str) for one in prepared])
        vectors = np.empty((len(prepared), self.dim), dtype=np.float32)
        for modality, rows in (("text", np.flatnonzero(said)), ("audio", np.flatnonzero(~said))):
            if len(rows):
                vectors[rows] = self.embed([prepared[row] for row in rows.tolist()], modality, role=role)
        return vectors

    def embed_tokens(
        self, prepared: Sequence[Any], modality: str, *, role: Role = "document"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Vectors float32 ``[N, D]``, tokens float32 ``[N, L, D]`` of unit length and their mask bool ``[N, L]``.

        Raises:
            UnsupportedModality: the model gives no token vectors for this modality.
        """
        from chiasm.encode.tokens import token_vectors

        route = self._route(modality)
        if route == "audio" and prepared and all(isinstance(one, str) for one in prepared):
            return self.embed_tokens(prepared, "text", role=role)
        blocks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for rows in self._batches(prepared, route):
            features, counts = self._collate([prepared[i] for i in rows], route, role)
            if counts is not None:
                raise UnsupportedModality("a recording heard in several windows has no token vectors", where=self.name)
            with self._inference():
                tokens, mask = token_vectors(self.model, self._moved(features), route, role)
            if tokens.shape[2] != self.dim:
                raise UnsupportedModality(
                    f"token vectors have {tokens.shape[2]} dimensions and sentence vectors {self.dim}", where=self.name
                )
            blocks.append((rows, tokens.cpu().numpy(), mask.cpu().numpy()))
        longest = max((block.shape[1] for _, block, _ in blocks), default=0)
        tokens = np.zeros((len(prepared), longest, self.dim), np.float32)
        mask = np.zeros((len(prepared), longest), bool)
        for rows, block, kept in blocks:
            tokens[rows, : block.shape[1]], mask[rows, : block.shape[1]] = block, kept
        return self.embed(prepared, modality, role=role), tokens, mask

    def encode(
        self,
        items: Iterable[Any],
        *,
        role: Role = "document",
        tokens: bool = False,
        batch_size: int = 32,
        progress: Any = False,
    ) -> Embeddings:
        """Vectors of items, strings, pictures and sounds in any mixture, in their order; see `encode_items`."""
        from chiasm.encode.pipeline import encode_items

        return encode_items(self, items, role=role, tokens=tokens, batch_size=batch_size, progress=progress)

    def _route(self, modality: str, where: str | None = None) -> str:
        if modality not in self._routes:
            raise UnsupportedModality(
                f"{self._name} has no encoder for {modality}",
                where=where,
                fix=f"It encodes {', '.join(self.modalities)}; choose another space for {modality}",
            )
        return self._routes[modality]

    def _input_module(self, route: str, role: Role = "document") -> Any:
        first: Any = self.model[0]
        if not isinstance(first, Router):
            return first
        modules: Any = first.sub_modules[first._resolve_route(task=role, modality=route) or route]
        return modules[0]

    def _features(self, contents: Sequence[Any], route: str, role: Role) -> dict[str, Any]:
        """The model's own preprocessing of contents of one kind."""
        module = self._input_module(route, role)
        if isinstance(module, Transformer):
            # Named, because a bare string that looks like an address or a path of a picture would be opened.
            contents = [{route: content} for content in contents]
        first: Any = self.model[0]
        extra: dict[str, Any] = {"modality": route} if isinstance(first, Router) else {}
        features = first.preprocess(contents, prompt=self._prompt(role, route), task=role, **extra)
        return dict(features) | {"modality": features.get("modality", route)}

    def _prompt(self, role: Role, route: str) -> str | None:
        return (self.model.prompts.get(role) or None) if route == "text" else None

    def _hear(self, sound: Sound, module: Any) -> dict[str, Any]:
        """The features of a recording's windows, ``[W, ...]`` each."""
        processor = getattr(module, "processor", None)
        extractor = getattr(processor, "feature_extractor", processor)
        rate = int(getattr(extractor, "sampling_rate", 0) or sound.rate)
        samples = resample(sound, rate)
        limit = getattr(extractor, "nb_max_samples", None) or getattr(extractor, "n_samples", None)
        length = int(limit or WINDOW_SECONDS * rate)
        # One window at a time: some processors choose at random among the recordings of a batch.
        parts = [
            self._features([{"array": window, "sampling_rate": rate}], "audio", "document")
            for window in windows(samples, length)
        ]
        return _concatenate(parts)

    def _batches(self, prepared: Sequence[Any], route: str) -> Iterator[np.ndarray]:
        """Rows that go through the network together: of one shape, texts of similar length."""
        if route == "text":
            order = np.argsort([len(text) for text in prepared], kind="stable")
            groups = [order] if len(order) else []
        else:
            shapes: dict[Any, list[int]] = {}
            for row, one in enumerate(prepared):
                shapes.setdefault(_shape(one), []).append(row)
            groups = [np.asarray(rows) for rows in shapes.values()]
        size = CPU_ROWS if self.device.type == "cpu" else max(len(prepared), 1)
        for group in groups:
            for start in range(0, len(group), size):
                yield group[start : start + size]

    def _collate(self, prepared: list[Any], route: str, role: Role) -> tuple[dict[str, Any], list[int] | None]:
        """Features of a batch, and the number of windows of each recording if one has several."""
        if route == "text":
            with self._tokenizing:
                return self._features(prepared, route, role), None
        if isinstance(prepared[0], dict):
            counts = [_rows(one) for one in prepared]
            return _concatenate(prepared) | {"task": role}, counts if max(counts) > 1 else None
        features = self._input_module(route, role).preprocess(prepared)
        return dict(features) | {"modality": route, "task": role}, None

    def _sentence_vectors(self, features: dict[str, Any], role: Role) -> np.ndarray:
        with self._inference():
            found: Tensor = self.model(self._moved(features), task=role)["sentence_embedding"]
            if self.model.truncate_dim is not None:
                found = found[:, : self.model.truncate_dim]
            return found.float().cpu().numpy()

    def _moved(self, features: dict[str, Any]) -> dict[str, Any]:
        return {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in features.items()}

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """Evaluation mode without gradients; modules in training go back to it."""
        training = [module for module in self.model.modules() if module.training] if self.model.training else []
        if training:
            self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            for module in training:
                module.training = True

    def _probe(self) -> dict[str, Any]:
        if "text" in self._routes:
            return self._collate(["a"], "text", "document")[0]
        modality = next(iter(self._routes))
        if modality == "image":
            from PIL import Image

            content: Any = Image.new("RGB", (64, 64))
        else:
            content = Sound(np.zeros(16000, np.float32), 16000)
        return self._collate([self.prepare(Item(modality, content, uri="probe"))], modality, "document")[0]


def _text_of(item: Item, where: str) -> str:
    if item.modality == "audio":
        if not item.text.strip():
            raise BadItem(
                "no speech recognized, and this space finds recordings by what is said in them",
                where=where,
                fix="Use a space with an audio encoder, for example laion/clap-htsat-unfused",
            )
        text = item.text
    elif isinstance(item.content, str):
        text = item.content
    else:
        raise BadItem(f"text must be a str, not {type(item.content).__name__}", where=where)
    return text.encode("utf-8", "replace").decode()  # tokenizers refuse lone surrogates


def _picture_of(item: Item, where: str) -> Any:
    from PIL import Image, ImageFile

    from chiasm.encode.images import decode, to_rgb

    picture = item.content
    if not isinstance(picture, Image.Image):
        raise BadItem(f"the content must be a PIL picture, not {type(picture).__name__}", where=where)
    # A picture that somebody opened himself is checked and turned upright as files are; readers have done it already.
    picture = decode(picture, where, min_side=None) if isinstance(picture, ImageFile.ImageFile) else to_rgb(picture)
    width, height = picture.size
    if min(width, height) < 1:
        raise BadItem(f"has no pixels ({width} x {height})", where=where)
    if max(width, height) > LONGEST * min(width, height):
        across, down = min(width, LONGEST * height), min(height, LONGEST * width)
        left, top = (width - across) // 2, (height - down) // 2
        picture = picture.crop((left, top, left + across, top + down))
    if min(picture.size) < SMALLEST:
        scale = SMALLEST / min(picture.size)
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
    return picture


def _sound_of(item: Item, where: str) -> Sound:
    sound = item.content
    if not isinstance(sound, Sound) or sound.samples.ndim != 1 or sound.rate <= 0:
        raise BadItem("the content must be a Sound of one channel", where=where)
    if not len(sound.samples):
        raise BadItem("the recording is empty (0 samples)", where=where)
    if not np.isfinite(sound.samples).all():
        raise BadItem("the recording holds NaN or infinite samples", where=where)
    return sound


def resample(sound: Sound, rate: int) -> np.ndarray:
    """Samples float32 ``[T]`` at another rate in Hz, through a polyphase filter against aliasing."""
    if sound.rate == rate:
        return np.asarray(sound.samples, dtype=np.float32)
    from math import gcd

    from scipy.signal import resample_poly

    divisor = gcd(sound.rate, rate)
    return resample_poly(sound.samples, rate // divisor, sound.rate // divisor).astype(np.float32)


def windows(samples: np.ndarray, length: int) -> list[np.ndarray]:
    """``samples`` itself, or if it is longer than ``length``, up to `WINDOWS` pieces of that length evenly spaced."""
    if len(samples) <= length:
        return [samples]
    count = min(WINDOWS, -(-len(samples) // length))
    return [samples[s : s + length] for s in np.linspace(0, len(samples) - length, count).astype(int)]


def _shape(one: Any) -> Any:
    if isinstance(one, dict):
        return tuple((k, tuple(v.shape[1:])) for k, v in sorted(one.items()) if isinstance(v, Tensor))
    return tuple(one.shape)


def _rows(features: dict[str, Any]) -> int:
    return next(len(v) for v in features.values() if isinstance(v, Tensor))


def _concatenate(parts: list[dict[str, Any]]) -> dict[str, Any]:
    first = parts[0]
    return {k: torch.cat([p[k] for p in parts]) if isinstance(v, Tensor) else v for k, v in first.items()}
