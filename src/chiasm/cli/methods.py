"""``chiasm methods``: the catalogue, by name or by what one sees going wrong."""

from __future__ import annotations

from typing import Annotated

import typer

from chiasm.cli.console import note, print_json, print_table
from chiasm.cli.store_option import JsonOption

PANEL, PLACE = "Methods", 1


def command(
    slug: Annotated[str | None, typer.Argument(help="One method, for its details.", show_default=False)] = None,
    symptom: Annotated[
        str | None,
        typer.Option(help="Only methods that treat this, for example hubness.", metavar="WORDS", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the methods, what they cure, and how to import them."""
    from chiasm import catalog

    if slug is not None:
        found = catalog.method(slug)
        if as_json:
            print_json(found.to_json())
            return
        for name, value in found.to_json().items():
            typer.echo(f"{name + ':':<14} {', '.join(value) if isinstance(value, list) else value}")
        typer.echo(f"{'page:':<14} {found.path / 'README.md'}")
        return
    listed = catalog.methods(symptom)
    if as_json:
        print_json([method.to_json() for method in listed])
        return
    if not listed:
        all_symptoms = sorted({word for method in catalog.methods() for word in method.symptoms})
        known = f" Known symptoms: {', '.join(all_symptoms[:20])}." if all_symptoms else ""
        note(f"No method{' treats ' + repr(symptom) if symptom else ' is in the catalogue yet'}.{known}")
        return
    rows = [[m.slug, m.title, str(m.year), m.kind, m.room, "; ".join(m.symptoms)] for m in listed]
    print_table(["slug", "title", "year", "kind", "room", "symptoms"], rows)
