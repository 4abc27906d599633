"""``chiasm new ROOM SLUG``: the folder of a new method, from which catalogue, battery and claims find it."""

from __future__ import annotations

import json
import keyword
import re
from datetime import date
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from chiasm.catalog import PACKAGE, ROOMS, folder_name, methods, read_method, slug_of
from chiasm.errors import BadInput, ChiasmError, unknown_name

PANEL, PLACE = "Methods", 3

# The kind decides which contract the method is held to, and which working baseline its scaffold starts from.
KINDS = {
    "learn/objectives": "objective",
    "learn/fusion": "fusion",
    "learn/alignment": "alignment",
    "adapt": "estimator",
    "compress": "adapter",
    "correct": "correction",
    "search": "search",
    "perceive": "perception",
    "reason/rag": "pipeline",
    "reason/graph": "graph",
    "reason/language": "adapter",
    "suites": "suite",
}
SCAFFOLDS = ("objective", "estimator", "adapter", "correction")


def command(
    room: Annotated[str, typer.Argument(help=f"One of {', '.join(ROOMS)}.", show_default=False)],
    slug: Annotated[str, typer.Argument(help="Short name of the method, for example one-to-k.", show_default=False)],
    title: Annotated[str | None, typer.Option(help="Title of the paper.", show_default=False)] = None,
    year: Annotated[
        int | None, typer.Option(help="Year of the paper.  [default: this year]", show_default=False)
    ] = None,
    arxiv: Annotated[str, typer.Option(help="Its arXiv number.", show_default=False)] = "",
    kind: Annotated[
        str | None, typer.Option(help="Kind of method.  [default: that of the room]", show_default=False)
    ] = None,
    into: Annotated[Path, typer.Option(help="The chiasm package to write into.", show_default=False)] = PACKAGE,
) -> None:
    """Make the folder of a new method: a working baseline that fails its own test until it is the method."""
    folder = create(room, slug, title=title, year=year, arxiv=arxiv, kind=kind, package=into)
    for path in sorted(folder.iterdir()):
        typer.echo(path)
    name = folder.name
    typer.echo(f"Fill in every TODO, starting with method.py. Then: pytest {folder} tests/test_contracts.py -k {name}")


def create(
    room: str,
    slug: str,
    *,
    title: str | None = None,
    year: int | None = None,
    arxiv: str = "",
    kind: str | None = None,
    package: Path = PACKAGE,
) -> Path:
    """Writes the folder of a method.

    Args:
        room: one of `chiasm.catalog.ROOMS`.
        slug: lower case words and digits joined by hyphens (underscores are taken too).
        title: the paper's title; default the slug.
        year: default this year.
        arxiv: arXiv number.
        kind: default that of the room, see `KINDS`.
        package: the package folder to write into.

    Returns:
        The new folder.

    Raises:
        UnknownName: no such room.
        BadInput: the slug is not one, or is taken.
        ChiasmError: the folder cannot be written.
    """
    room = room.strip("/").replace(".", "/")
    if room not in ROOMS:
        raise unknown_name("room", room, ROOMS)
    slug = slug_of(slug)
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", slug) or keyword.iskeyword(folder_name(slug)):
        raise BadInput(
            f"{slug!r} is not a slug", where="chiasm new", fix="Use lower case words joined by hyphens: one-to-k"
        )
    taken = {method.slug: method.path for method in methods(package=package)}
    folder = package / room / folder_name(slug)
    if slug in taken or folder.exists():
        raise BadInput(f"the name {slug!r} is taken", where=str(taken.get(slug, folder)))
    kind = kind or KINDS[room]
    name = "".join(word.capitalize() for word in slug.split("-"))
    module = ".".join(("chiasm", *room.split("/"), folder_name(slug)))
    values = {
        "slug": slug,
        "name": name,
        "module": module,
        "kind": kind,
        "title": " ".join((title or slug).split()).replace('"""', "'"),
        "year": str(year or date.today().year),
        "arxiv": " ".join(arxiv.split()),
    }
    try:
        _write(folder, package, values)
    except OSError as error:
        raise ChiasmError(f"cannot be written ({error.strerror})", where=str(folder)) from error
    read_method(folder / "method.toml", package)  # what was written must be what the catalogue reads
    return folder


def _write(folder: Path, package: Path, values: dict[str, str]) -> None:
    folder.mkdir(parents=True)
    for parent in folder.relative_to(package).parents:
        start = package / parent / "__init__.py"
        if not start.exists():
            start.write_text(
                f'"""The room {parent.as_posix()}; its methods are the folders in it."""\n', encoding="utf-8"
            )
    scaffold = values["kind"] if values["kind"] in SCAFFOLDS else "other"
    quoted = {f"{name}_quoted": json.dumps(value, ensure_ascii=False) for name, value in values.items()}
    for source, target in {
        "init": "__init__.py",
        "toml": "method.toml",
        f"method_{scaffold}": "method.py",
        "claim": "claim.py",
        f"test_{scaffold}": f"test_{folder.name}.py",
        "readme": "README.md",
    }.items():
        text = files("chiasm.cli").joinpath("templates", f"{source}.tmpl").read_text(encoding="utf-8")
        (folder / target).write_text(Template(text).substitute(values | quoted), encoding="utf-8")
