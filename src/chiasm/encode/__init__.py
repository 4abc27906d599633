"""Media -> vectors: read files into items, load a space by name, encode."""

from __future__ import annotations

from importlib import import_module
from threading import RLock
from typing import TYPE_CHECKING, Any

# Not lazy like the rest: importing the submodule `read` later would put the module where the function is expected.
from chiasm.encode.read import read

if TYPE_CHECKING:
    from chiasm.encode.cache import FeatureCache
    from chiasm.encode.files import path_to_uri, sniff, uri_to_path, walk
    from chiasm.encode.model_space import ModelSpace
    from chiasm.encode.pipeline import FileResult, encode_files, encode_items
    from chiasm.encode.thumbnails import thumbnail

_LAZY = {
    "FeatureCache": "chiasm.encode.cache",
    "FileResult": "chiasm.encode.pipeline",
    "ModelSpace": "chiasm.encode.model_space",
    "encode_files": "chiasm.encode.pipeline",
    "encode_items": "chiasm.encode.pipeline",
    "path_to_uri": "chiasm.encode.files",
    "sniff": "chiasm.encode.files",
    "thumbnail": "chiasm.encode.thumbnails",
    "uri_to_path": "chiasm.encode.files",
    "walk": "chiasm.encode.files",
}

__all__ = [
    "FeatureCache",
    "FileResult",
    "ModelSpace",
    "encode_files",
    "encode_items",
    "load",
    "path_to_uri",
    "read",
    "sniff",
    "thumbnail",
    "uri_to_path",
    "walk",
]

# A model is loaded once per process: a command and a store may both ask for it. Two at most, because models are large.
_KEPT = 2
_loaded: dict[tuple[str, str | None], ModelSpace] = {}
_lock = RLock()


def load(name: str, *, device: str | None = None) -> ModelSpace:
    """The space of this name. The second call with the same name and device returns the same object.

    Args:
        name: ``"pocket"`` (embedded, needs no download), a folder that holds a sentence-transformers model or a plain
            transformers one (CLIP, SigLIP, CLAP, BERT, ...), or a hub id such as ``"openai/clip-vit-base-patch32"``.
        device: ``"cpu"``, ``"cuda"``, ...; None chooses a GPU if there is one.

    Raises:
        UnknownName: nothing of this name exists, or the hub cannot be reached; the nearest names are offered.
        BadInput: the folder holds no model, or one with pickled weights or code of its own.
    """
    from pathlib import Path

    from chiasm.encode.hub import POCKET, open_model, quiet

    name = str(name)
    folder = Path(name).expanduser()
    is_folder = name != POCKET and folder.is_dir()
    # A store remembers the name, and a relative path would mean something else tomorrow.
    full = str(folder.resolve()) if is_folder else name
    # A folder that was written anew is another model.
    stamp = (
        f"{full}@{max((f.stat().st_mtime_ns for f in folder.rglob('*.safetensors')), default=0)}" if is_folder else full
    )
    with _lock:
        key = (stamp, device)
        if key in _loaded:
            return _loaded[key]
        from chiasm.encode.model_space import ModelSpace

        if name == POCKET:
            from chiasm import __version__
            from chiasm.encode.pocket import build

            with quiet():
                space = ModelSpace(build(device), POCKET, revision=__version__)
        else:
            model, revision = open_model(full, device)
            space = ModelSpace(model, full, revision=revision)
        space.model.eval()  # once here, so that no batch has to switch a thousand modules there and back
        while len(_loaded) >= _KEPT:
            del _loaded[next(iter(_loaded))]
        _loaded[key] = space
        return space


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'chiasm.encode' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
