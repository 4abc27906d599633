"""`Item`: one thing that can be searched for, with its content and where it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from chiasm.errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image

Modality = Literal["text", "image", "audio", "video"]
MODALITIES: tuple[str, ...] = get_args(Modality)


@dataclass(frozen=True, slots=True)
class Sound:
    """A mono recording: ``samples`` float32 ``[T]`` in [-1, 1] and ``rate`` in Hz."""

    samples: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


@dataclass(frozen=True, slots=True)
class Item:
    """One searchable thing: a picture, a chunk of text, a recording, or a frame of a clip.

    A file can hold several items: a PDF has chunks of text and pictures on its pages, a clip has sampled frames.
    Each is an `Item` of its own with the same ``uri`` and its place in the file in ``part``.

    Args:
        modality: ``"text"``, ``"image"``, ``"audio"`` or ``"video"`` (one sampled frame of a clip).
        content: ``str`` for text; ``PIL.Image.Image`` for image and video; `Sound` for audio.
        uri: where it came from: an absolute path, an address, or ``""`` for content made in memory.
        part: its place inside ``uri``, for example ``"page=3"`` or ``"t=12.5"``; ``""`` for the whole.
        text: words that belong to it and are searchable as text: the chunk itself, a transcript, a caption.
        sha256: hash of the file's bytes (of the content for items made in memory).
        meta: JSON-serializable facts: page, time in seconds, width, height, ...
        id: unique name in a store; by default made from ``uri`` and ``part`` (of the content without a ``uri``).
    """

    modality: str
    content: Any
    uri: str = ""
    part: str = ""
    text: str = ""
    sha256: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""

    def __post_init__(self) -> None:
        if self.modality not in MODALITIES:
            raise BadInput(
                f"modality {self.modality!r} does not exist", where="Item", fix=f"Use one of {', '.join(MODALITIES)}"
            )
        if not self.sha256 and not self.uri:
            object.__setattr__(self, "sha256", content_hash(self.content))
        if not self.id:
            object.__setattr__(self, "id", item_id(self.uri or self.sha256, self.part))

    @classmethod
    def of(cls, thing: Any, **fields: Any) -> Item:
        """Makes an item of a string, a picture (PIL or ``uint8 [H, W, 3]``) or a `Sound`; the modality is inferred.

        Args:
            thing: the content.
            **fields: further fields of `Item`, for example ``id`` or ``meta``.

        Raises:
            BadInput: the modality cannot be told from the content.
        """
        if isinstance(thing, Item):
            return replace(thing, **fields) if fields else thing
        if isinstance(thing, str):
            return cls("text", thing, **{"text": thing, **fields})
        if isinstance(thing, Sound):
            return cls("audio", thing, **fields)
        if isinstance(thing, np.ndarray) and thing.dtype == np.uint8 and thing.ndim == 3 and thing.shape[2] == 3:
            from PIL import Image

            return cls("image", Image.fromarray(thing), **fields)
        if type(thing).__module__.startswith("PIL."):
            return cls("image", thing, **fields)
        raise BadInput(
            f"cannot tell the modality of a {type(thing).__name__}",
            where="Item.of",
            fix="Give a string, a PIL picture, a uint8 [H, W, 3] array or a Sound; for a file use chiasm.encode.read(path)",
        )


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file or item that was left out, and why."""

    path: str
    reason: str

    def to_json(self) -> dict[str, str]:
        return {"path": self.path, "reason": self.reason}


def item_id(uri: str, part: str = "") -> str:
    """The stable 32-digit id of a place: the same file and part have the same id in every run."""
    return hashlib.sha256(f"{uri}\0{part}".encode("utf-8", "surrogateescape")).hexdigest()[:32]


def content_hash(content: str | bytes | np.ndarray | Sound | Image | Any) -> str:
    """SHA-256 of a content in memory (hex), the same for equal contents."""
    digest = hashlib.sha256()
    if isinstance(content, str):
        digest.update(b"text\0" + content.encode("utf-8", "surrogatepass"))
    elif isinstance(content, bytes):
        digest.update(b"bytes\0" + content)
    elif isinstance(content, Sound):
        digest.update(f"sound {content.rate}\0".encode() + np.ascontiguousarray(content.samples).tobytes())
    elif isinstance(content, np.ndarray):
        digest.update(f"array {content.dtype} {content.shape}\0".encode() + np.ascontiguousarray(content).tobytes())
    elif hasattr(content, "tobytes") and hasattr(content, "mode"):
        digest.update(f"picture {content.mode} {content.size}\0".encode() + content.tobytes())
    else:
        raise BadInput(f"cannot hash a {type(content).__name__}", where="content_hash")
    return digest.hexdigest()


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes (hex), read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
