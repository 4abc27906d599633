"""The options by which commands narrow what is searched."""

from __future__ import annotations

from typing import Annotated

import typer

ModalityOption = Annotated[
    list[str] | None, typer.Option(help="Only text, image, audio or video; may be repeated.", show_default=False)
]
PathOption = Annotated[str | None, typer.Option(help="Only files in this folder, or this file.", show_default=False)]
WhereOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Only items with this fact, for example page=3 or 'width>=800'; may be repeated.",
        metavar="NAME=VALUE",
        show_default=False,
    ),
]
