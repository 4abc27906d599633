"""The options by which commands find the columns and files of a table of pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ColumnsOption = Annotated[
    str | None,
    typer.Option(
        help="The columns of pictures and captions, if they cannot be told.", metavar="A,B", show_default=False
    ),
]
ImagesOption = Annotated[
    Path | None,
    typer.Option(help="Folder that the paths start from.  [default: that of the file]", show_default=False),
]
