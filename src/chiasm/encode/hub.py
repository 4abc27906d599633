"""Models by name: a folder or a hub id becomes one `SentenceTransformer`, or one clear error.

sentence-transformers 6 reads CLIP-, SigLIP- and CLAP-like checkpoints, plain transformers text models and its own models
natively. Here stand only the rules of this house: weights come from safetensors and never from pickle, no code is run
that a model brings along, and whatever goes wrong ends in one message instead of a chain of hub exceptions.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chiasm.errors import BadInput, ChiasmError, UnknownName, unknown_name

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

POCKET = "pocket"
# Offered when a name is close to one of them; any other hub id works as well.
WELL_KNOWN = (
    POCKET,
    "openai/clip-vit-base-patch32",
    "openai/clip-vit-large-patch14",
    "google/siglip-base-patch16-224",
    "google/siglip2-base-patch16-224",
    "laion/clap-htsat-unfused",
    "sentence-transformers/clip-ViT-B-32",
    "sentence-transformers/all-MiniLM-L6-v2",
)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# What a model needs, and nothing that is pickled, executable, or the same weights in another form.
WANTED = ["*.json", "*.txt", "*.safetensors", "*.model", "*.jinja", "*.spm", "*.bpe", "*.tiktoken"]
UNWANTED = ["onnx/*", "openvino/*", "original/*", "*.fp16.safetensors", "*.bf16.safetensors", "consolidated*"]
OWN_CLASSES = "chiasm."
POCKET_FIX = "Use 'pocket', the embedded space that needs no download"


def open_model(name: str, device: str | None = None) -> tuple[SentenceTransformer, str]:
    """The model of a folder or a hub id, and its revision.

    Args:
        name: a folder (a sentence-transformers model, or a plain transformers model with its processor) or a hub id.
        device: ``"cpu"``, ``"cuda"``, ...; None chooses a GPU if there is one.

    Returns:
        The model and the hub's commit (``""`` for a folder).

    Raises:
        UnknownName: nothing of this name exists, or the hub cannot be reached and it is not in the local cache.
        BadInput: the folder holds no model, or one that has only pickled weights or needs code of its own.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return open_folder(folder, device), ""
    if folder.exists() or name.startswith((".", "~", os.sep)) or name.count("/") > 1 or not HUB_ID.fullmatch(name):
        raise _unknown(name, "there is no such folder")
    snapshot = fetch(name)
    revision = snapshot.name if snapshot.parent.name == "snapshots" else ""
    return open_folder(snapshot, device, name=name), revision


def fetch(name: str) -> Path:
    """The local snapshot of a hub model, downloaded if it must be and may be (``HF_HUB_OFFLINE``).

    Raises:
        UnknownName: it does not exist, or is neither in the cache nor can be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    full = name if "/" in name else f"sentence-transformers/{name}"
    try:
        return Path(snapshot_download(full, allow_patterns=WANTED, ignore_patterns=UNWANTED))
    except GatedRepoError as error:
        raise BadInput("the hub asks for a permission first", where=name, fix="Log in with: hf auth login") from error
    except RepositoryNotFoundError as error:
        why, cause = "the hub does not know it", error
    except Exception as error:  # offline mode, no network, proxies, full disk: the libraries have no common base
        why, cause = "it is not in the local cache, and the model hub cannot be reached", error
    raise _unknown(name, why) from cause


def _unknown(name: str, why: str) -> UnknownName:
    near = unknown_name("space", name, WELL_KNOWN)
    offer = f"{near.fix} " if near.fix and near.fix.startswith("Did you mean") else ""
    return UnknownName(f"{near.what}: {why}", fix=f"{offer}{POCKET_FIX}, or name a folder that holds a model")


def open_folder(folder: Path, device: str | None = None, *, name: str = "") -> SentenceTransformer:
    """Loads the model of a folder; see `open_model`."""
    where = name or str(folder)
    own = check_folder(folder, where)
    from sentence_transformers import SentenceTransformer

    try:
        with quiet():
            return SentenceTransformer._load_with_module_classes(
                str(folder),
                own,
                device=device,
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
    except ChiasmError:
        raise
    except Exception as error:  # whatever the libraries raise on a broken or foreign model
        line = (str(error).strip().splitlines() or [""])[0][:300]
        raise BadInput(
            f"the model cannot be loaded ({type(error).__name__}: {line})",
            where=where,
            fix=f"Check that the folder is complete. {POCKET_FIX}",
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' bars ("Loading weights", "Writing model shards") that last a few milliseconds."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def check_folder(folder: Path, where: str) -> dict[str, type]:
    """Checks a model folder before anything in it is loaded.

    Returns:
        The classes of this package that the model is made of, by the name the folder gives them.

    Raises:
        BadInput: no model, only pickled weights, or classes that are neither ours nor sentence-transformers'.
    """
    if not (folder / "modules.json").is_file() and not (folder / "config.json").is_file():
        raise BadInput("holds no model (neither modules.json nor config.json)", where=where, fix=POCKET_FIX)
    for pickled in sorted(folder.rglob("pytorch_model*.bin")):
        if not any(pickled.parent.glob("*.safetensors")):
            raise BadInput(
                f"has its weights only as pickle ({pickled.name}), which can run code when it is loaded",
                where=where,
                fix="Convert them to safetensors with save_pretrained, or use a revision that has safetensors",
            )
    own: dict[str, type] = {}
    for reference in class_names(folder, where):
        if reference.startswith(OWN_CLASSES):
            own[reference] = _own_class(reference, where)
        elif not reference.startswith("sentence_transformers."):
            raise BadInput(
                f"needs the class {reference!r}, code that Chiasm does not run",
                where=where,
                fix="Load it with SentenceTransformer(path, trust_remote_code=True) if you trust it, "
                "and give that to chiasm.encode.ModelSpace",
            )
    return own


def class_names(folder: Path, where: str) -> set[str]:
    """The classes named in ``modules.json`` and in the configurations of routers."""
    names: set[str] = set()
    try:
        if (folder / "modules.json").is_file():
            names |= {str(module["type"]) for module in _json(folder / "modules.json")}
        for router in folder.rglob("router_config.json"):
            names |= {str(kind) for kind in _json(router)["types"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"modules.json or router_config.json is broken ({error})", where=where) from error
    return names


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _own_class(reference: str, where: str) -> type:
    from importlib import import_module

    from torch.nn import Module

    module, _, name = reference.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise BadInput(
            f"needs {reference}, which this version does not have", where=where, fix="Update chiasm"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Module)):
        raise BadInput(f"{reference} is not a module", where=where)
    return found


def call_as_trained(model: SentenceTransformer) -> None:
    """Pins arguments of processors that would otherwise follow the batch or leak from another processor.

    SigLIP was trained on texts padded to full length and attends to the padding: padded to the longest text of a batch,
    as sentence-transformers does by default, a vector would depend on its neighbors. CLAP's processor hands the length
    and truncation of its tokenizer (saved with it once it was used) to the sound as well, which then would be cut to a
    random piece of some 500 samples. The settings are saved with the model.
    """
    from sentence_transformers.base.modules import Dense, Transformer
    from torch.nn import Softmax

    for module in model.modules():
        # An activation is saved by its class alone; over vectors [N, D] torch would choose this dimension with a warning.
        if isinstance(module, Dense) and isinstance(module.activation_function, Softmax):
            module.activation_function.dim = -1
        if not isinstance(module, Transformer):
            continue
        if module.config.model_type in ("siglip", "siglip2"):
            text = module.processing_kwargs.setdefault("text", {})
            text.setdefault("padding", "max_length")
            text.setdefault("max_length", module.config.text_config.max_position_embeddings)
        if module.config.model_type == "clap":
            extractor = module.processor.feature_extractor
            audio = module.processing_kwargs.setdefault("audio", {})
            audio.setdefault("max_length", extractor.nb_max_samples)
            audio.setdefault("truncation", extractor.truncation)
