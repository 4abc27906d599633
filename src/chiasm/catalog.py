"""The catalogue of methods: reads every ``method.toml`` without importing any method."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from chiasm.errors import ChiasmError, unknown_name

PACKAGE = Path(__file__).parent

# Where a method's room may lie; the order is that of the data's walk through the house.
ROOMS = (
    "learn/objectives",
    "learn/fusion",
    "learn/alignment",
    "adapt",
    "compress",
    "correct",
    "search",
    "perceive",
    "reason/rag",
    "reason/graph",
    "reason/language",
    "suites",
)
REQUIRED = ("slug", "title", "year", "arxiv", "kind", "import_path", "symptoms", "extras", "license_note")


@dataclass(frozen=True, slots=True)
class Method:
    """One entry of the catalogue, as its ``method.toml`` states it.

    Args:
        slug: the name used everywhere, with hyphens.
        title: the paper's title or short name.
        year: year of publication.
        arxiv: arXiv number, ``""`` if there is none.
        kind: objective, correction, adapter, ...
        import_path: ``module:Class`` of the public class.
        symptoms: what a user sees when this method is the cure.
        extras: extras of ``pyproject.toml`` that it needs.
        license_note: the licence of the original code and what was taken from it.
        room: the folder under ``chiasm``, for example ``correct``.
        path: the method's own folder.
    """

    slug: str
    title: str
    year: int
    arxiv: str
    kind: str
    import_path: str
    symptoms: tuple[str, ...]
    extras: tuple[str, ...]
    license_note: str
    room: str
    path: Path = field(compare=False)

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in (*REQUIRED, "room")} | {
            "symptoms": list(self.symptoms),
            "extras": list(self.extras),
        }


def folder_name(slug: str) -> str:
    """``one-to-k`` -> ``one_to_k``."""
    return slug.replace("-", "_")


def slug_of(name: str) -> str:
    """``one_to_k`` -> ``one-to-k``; every command takes either form."""
    return name.strip().lower().replace("_", "-")


def read_method(toml: Path, package: Path = PACKAGE) -> Method:
    """Reads one ``method.toml``.

    Raises:
        ChiasmError: it cannot be parsed, lacks a key, or its slug is not the folder's name.
    """
    try:
        raw = tomllib.loads(toml.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ChiasmError(f"cannot be parsed ({error})", where=str(toml)) from error
    missing = [key for key in REQUIRED if key not in raw]
    if missing:
        raise ChiasmError(f"lacks {', '.join(missing)}", where=str(toml), fix="See CONTRIBUTING.md for the keys")
    if folder_name(raw["slug"]) != toml.parent.name:
        raise ChiasmError(f"slug {raw['slug']!r} is not the folder's name", where=str(toml))
    values = {key: raw[key] for key in REQUIRED}
    values["symptoms"], values["extras"] = tuple(raw["symptoms"]), tuple(raw["extras"])
    return Method(**values, room=toml.parent.parent.relative_to(package).as_posix(), path=toml.parent)


def _find(package: Path) -> Iterator[Path]:
    for room in ROOMS:
        yield from sorted((package / room).glob("*/method.toml"))


def methods(symptom: str | None = None, *, package: Path = PACKAGE) -> list[Method]:
    """All methods in the order of the house, or those that treat a symptom.

    Args:
        symptom: words to look for in the methods' symptoms, titles and slugs; all of them must occur.
        package: the folder to search, for tests.

    Raises:
        ChiasmError: a ``method.toml`` is broken or two methods share a slug.
    """
    found = [read_method(toml, package) for toml in _find(package)]
    slugs = [method.slug for method in found]
    twice = {slug for slug in slugs if slugs.count(slug) > 1}
    if twice:
        raise ChiasmError(f"two methods share the slug {sorted(twice)[0]!r}", where="catalogue")
    if symptom is None:
        return found
    words = symptom.lower().split()
    return [m for m in found if all(w in " ".join((*m.symptoms, m.title, m.slug)).lower() for w in words)]


def method(name: str, *, package: Path = PACKAGE) -> Method:
    """The method with this slug (hyphens or underscores).

    Raises:
        UnknownName: there is none; the message offers the nearest slugs.
    """
    known = {m.slug: m for m in methods(package=package)}
    slug = slug_of(name)
    if slug not in known:
        raise unknown_name("method", name, known)
    return known[slug]


def export(room: str, name: str) -> Any:
    """A public class of one of a room's methods, imported when first used: the ``__getattr__`` of a room.

    Args:
        room: the folder under ``chiasm``, for example ``correct``.
        name: what is asked of the room.

    Raises:
        AttributeError: no method of the room exports this name.
    """
    package = f"chiasm.{room.replace('/', '.')}"
    # `from chiasm.adapt import evidence` asks here first; that must not import every method of the room.
    module_of_the_room = (PACKAGE / room / f"{name}.py").exists() or (PACKAGE / room / name).is_dir()
    if not name.startswith("_") and not module_of_the_room:
        for found in methods():
            if found.room == room:
                module = import_module(f"{package}.{folder_name(found.slug)}")
                if name in getattr(module, "__all__", ()):
                    return getattr(module, name)
    raise AttributeError(f"module {package!r} has no attribute {name!r}")
