"""``chiasm correct --apply NAME | --undo``: fairer scores of a store, at no cost per query."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chiasm.cli.console import print_json, printable, waiting
from chiasm.cli.store_option import DEFAULT_STORE, JsonOption, StoreOption, open_store
from chiasm.errors import BadInput, unknown_name

if TYPE_CHECKING:
    import numpy as np

    from chiasm.correct import ItemBias
    from chiasm.search import Store

PANEL, PLACE = "Search", 6

# Short names, beside class names and slugs.
_SHORT = {
    "is": "InvertedSoftmax",
    "nnn": "NearestNeighborNormalization",
    "dualis": "DualBankNorm",
    "gc": "GloballyCorrected",
    "dis": "DynamicInvertedSoftmax",
    "dualdis": "DynamicDualBankNorm",
}


def command(
    store: StoreOption = DEFAULT_STORE,
    apply: Annotated[
        str | None,
        typer.Option(help="A correction by class or slug: csls, is, nnn, dbnorm.", metavar="NAME", show_default=False),
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Back to plain scores.")] = False,
    queries: Annotated[
        Path | None,
        typer.Option(help="Past queries: a .txt, one a line, or a file of embeddings.", show_default=False),
    ] = None,
    null_bank: Annotated[
        bool, typer.Option("--null-bank", help="Use the built-in everyday phrases as past queries (the default).")
    ] = False,
    items: Annotated[
        Path | None,
        typer.Option(help="Past items, for corrections that use them: a file of embeddings.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Apply a correction of scores to a store, or undo it."""
    if (apply is None) == (not undo):
        raise BadInput("needs either --apply NAME or --undo", where="chiasm correct")
    if undo and (queries or items or null_bank):
        raise BadInput("--undo takes no bank", where="chiasm correct")
    if queries is not None and null_bank:
        raise BadInput("--queries and --null-bank are two banks", where="chiasm correct", fix="Give one of them")
    with open_store(store) as opened:
        before = None if opened.header.correction is None else opened.header.correction.name
        if apply is None:
            with waiting("undoing"):
                opened.correct(None)
            done: dict[str, Any] = {"store": str(store), "correction": None, "undone": before, "items": len(opened)}
        else:
            correction = find(apply)
            with waiting("correcting"):
                bank, source = query_bank(opened, queries)
                opened.correct(correction, queries=bank, items=None if items is None else item_bank(items, correction))
            done = {
                "store": str(store),
                "correction": type(correction).__name__,
                "parameters": correction.get_params(),
                "replaced": before,
                "bank": source,
                "bank_queries": len(bank),
                "items": len(opened),
            }
    if as_json:
        print_json(done)
    else:
        _say(done)


def find(name: str) -> ItemBias:
    """The correction of this name with its default strengths, not fitted yet.

    Args:
        name: a class, a slug of the catalogue or a short name, in any case.

    Raises:
        UnknownName: there is none.
        BadInput: it is not one number an item, so a store cannot serve it.
    """
    from importlib import import_module

    from chiasm import catalog
    from chiasm.correct.bias import Correction, ItemBias

    known: dict[str, type] = {}
    for method in catalog.methods():
        if method.room == "correct":
            module = import_module(f"chiasm.correct.{catalog.folder_name(method.slug)}")
            classes = [getattr(module, public) for public in getattr(module, "__all__", ())]
            found = [c for c in classes if isinstance(c, type) and issubclass(c, Correction)]
            known |= {c.__name__.lower(): c for c in found}
            main = getattr(module, method.import_path.rpartition(":")[2], None)
            if main in found:
                known[method.slug] = main
    known |= {short: known[full.lower()] for short, full in _SHORT.items() if full.lower() in known}
    key = name.strip().lower()
    kind = known.get(key) or known.get(catalog.slug_of(name))
    if kind is None:
        raise unknown_name("correction", name, known)
    if not issubclass(kind, ItemBias):
        fix = "Apply one of csls, is, nnn, dbnorm, or write corrected vectors to another index from Python"
        raise BadInput(f"{kind.__name__} is not one number an item, a store cannot serve it", where=name, fix=fix)
    return kind()


def query_bank(store: Store, queries: Path | None) -> tuple[np.ndarray, str]:
    """The bank of past queries ``[B, D]`` and what it is: the given ones, else everyday phrases (stores keep no log)."""
    from chiasm.doctor.sources import read_lines, vectors_of_file

    if queries is None:
        from chiasm.search import null_bank

        if not store.can_encode_text:
            raise BadInput(
                "the store's space encodes no words, so there are no everyday phrases to use as past queries",
                where=str(store.path),
                fix="Give --queries FILE with vectors of past queries",
            )
        return null_bank(store.space), "everyday phrases"
    path = queries.expanduser()
    if path.suffix.lower() == ".txt":
        from chiasm.embeddings import unit

        return unit(store.space.encode(read_lines(path), role="query", batch_size=128).vectors), str(queries)
    return _unit(vectors_of_file(path).array, path), str(queries)


def item_bank(path: Path, correction: ItemBias) -> np.ndarray:
    """The bank of past items ``[B, D]`` as unit vectors.

    Raises:
        BadInput: the correction has no use for items.
    """
    if "beta_items" not in correction.get_params():
        name = type(correction).__name__
        raise BadInput(f"{name} uses no item bank", where="--items", fix="Apply dbnorm, or leave it out")
    from chiasm.doctor.sources import vectors_of_file

    return _unit(vectors_of_file(path.expanduser()).array, path)


def _unit(vectors: np.ndarray, path: Path) -> np.ndarray:
    from chiasm.doctor.vectors import checked, unit_rows

    return unit_rows(checked(vectors, str(path), least=1))


def _say(done: dict[str, Any]) -> None:
    if done["correction"] is None:
        was = f"{done['undone']} undone" if done["undone"] else "there was no correction"
        typer.echo(printable(f"{done['store']}: {was}, plain scores for {done['items']:,} items"))
        return
    replaced = f" (instead of {done['replaced']})" if done["replaced"] else ""
    typer.echo(
        printable(
            f"{done['store']}: {done['correction']}{replaced} applied to {done['items']:,} items, "
            f"bank: {done['bank_queries']:,} {done['bank'] if done['bank'] == 'everyday phrases' else 'queries of ' + done['bank']}"
        )
    )
    typer.echo("Undo it with: chiasm correct --undo. Measure its gain with: chiasm doctor STORE --pairs FILE")
