"""Adds the methods' own pages (each room's README.md) to the site, and an index of them made from the catalogue."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from chiasm.catalog import Method, methods


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the generated pages into the navigation."""
    found = methods()
    if found and config.nav is not None:
        pages = [{m.title: f"methods/{m.slug}.md"} for m in found]
        config.nav.append({"Methods": [{"All methods": "methods/index.md"}, *pages]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Generates one page a method from its room, and the index."""
    found = methods()
    if not found:
        return files
    for method in found:
        page = (method.path / "README.md").read_text(encoding="utf-8")
        files.append(File.generated(config, f"methods/{method.slug}.md", content=page))
    files.append(File.generated(config, "methods/index.md", content=_index(found)))
    return files


def _index(found: list[Method]) -> str:
    rows = [f"| [{m.title}]({m.slug}.md) | {m.kind} | {m.year} | {'; '.join(m.symptoms)} |" for m in found]
    return "\n".join(
        ["# Methods", "", "| method | kind | year | what you see when you need it |", "|---|---|---|---|", *rows, ""]
    )
