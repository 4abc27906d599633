"""``chiasm ask "question"``: an answer with its sources, or the honest word that the store holds none."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chiasm.cli.console import bar, note, one_line, print_json, printable, waiting
from chiasm.cli.filter_options import ModalityOption, PathOption, WhereOption
from chiasm.cli.search import facts
from chiasm.cli.store_option import DEFAULT_STORE, JsonOption, StoreOption, open_store
from chiasm.errors import BadInput

if TYPE_CHECKING:
    from chiasm.reason.rag import Answer, Source
    from chiasm.search import Store

PANEL, PLACE = "Search", 3


def command(
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    store: StoreOption = DEFAULT_STORE,
    llm: Annotated[
        str | None,
        typer.Option(
            help="An OpenAI-compatible address that writes the answer, for example http://localhost:8080/v1; "
            "the key is read from OPENAI_API_KEY.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Its model; by default the first that it lists.", show_default=False)
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that the language model may take in all.")] = 90.0,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="End with an error if the language model fails, not with the offline answer."),
    ] = False,
    vision: Annotated[bool, typer.Option("--vision", help="Send pictures to the language model too.")] = False,
    k: Annotated[int, typer.Option("-k", "--passages", help="Passages to answer from.")] = 8,
    sentences: Annotated[int, typer.Option(help="Most sentences of an offline answer.")] = 2,
    modality: ModalityOption = None,
    path: PathOption = None,
    where: WhereOption = None,
    rate: Annotated[float, typer.Option(help="Share of questions without an answer that may get one.")] = 0.05,
    as_json: JsonOption = False,
) -> None:
    """Answer a question from what is in a store, with sources."""
    for name, given in (("--model", model is not None), ("--strict", strict), ("--vision", vision)):
        if given and llm is None:
            raise BadInput(f"{name} needs --llm", where="chiasm ask", fix="Give the address of a language model")
    filters = {"modality": modality or None, "path": path, "where": facts(where or [])}
    with open_store(store) as opened, waiting("looking for an answer"):
        answer = answered(
            opened,
            question,
            k=k,
            rate=rate,
            filters=filters,
            sentences=sentences,
            llm=llm,
            model=model,
            timeout=timeout,
            strict=strict,
            vision=vision,
        )
    if as_json:
        print_json(answer.to_json())
    else:
        show(answer)


def answered(
    store: Store,
    question: str,
    *,
    llm: str | None = None,
    model: str | None = None,
    timeout: float = 90.0,
    strict: bool = False,
    vision: bool = False,
    sentences: int = 2,
    **options: Any,
) -> Answer:
    """The answer to a question from a store; ``options`` are those of `chiasm.reason.rag.over_store`."""
    from chiasm.reason.rag import OpenAIGenerator, over_store
    from chiasm.reason.rag.store_retriever import offline_generator, picture_of

    generator = None
    if llm is not None:
        fallback = None if strict else offline_generator(store, sentences=sentences)
        # Three tries within the deadline; a slow local model is more often slow than stuck.
        generator = OpenAIGenerator(
            llm, model, fallback=fallback, vision=vision, look=picture_of, timeout=timeout, deadline=timeout
        )
    return over_store(store, generator=generator, sentences=sentences, **options).ask(question)


def show(answer: Answer) -> None:
    """Prints an answer and its sources."""
    for warning in answer.warnings:
        note(f"Warning: {warning}")
    if answer.abstained:
        typer.echo(f"No answer: {printable(answer.reason)}.")
        if answer.sources:
            typer.echo("\nNearest, but not an answer:")
    else:
        typer.echo("\n".join(printable(line) for line in answer.text.splitlines()))
        typer.echo("\nSources:")
    for number, source in enumerate(answer.sources, start=1):
        typer.echo(f"  [{number}] {place(source)}{sure(source)}")
        if source.quote and not answer.abstained:
            typer.echo(f"      “{one_line(source.quote, 160)}”")


def place(source: Source) -> str:
    """Where a source is, on one line."""
    name = source.uri or source.id
    return ", ".join(printable(part) for part in (name if PurePath(name).name else source.id, source.locator) if part)


def sure(source: Source) -> str:
    return "" if source.relevance is None else f"  {bar(source.relevance)} {source.relevance:.0%}"
