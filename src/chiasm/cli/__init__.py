"""The command line: one file per command.

Every module of this folder that has a function ``command`` (or a Typer ``app`` with commands of its own) is a command of
that name; nothing is registered anywhere else. Modules import what is heavy inside the function, so help stays fast.
"""

from __future__ import annotations

import io
import os
import pkgutil
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from chiasm import __version__
from chiasm.errors import ChiasmError

# The order of the groups in the help; a command module names its group in PANEL.
PANELS = ("Search", "Spaces", "Methods")


class Grouped(TyperGroup):
    """Commands listed by group, in plain text: rich help alone would take twice the time of everything else."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            rows.setdefault(str(getattr(command, "rich_help_panel", "")), []).append(
                (name, command.get_short_help_str(limit=200))
            )
        for panel, commands in rows.items():
            with formatter.section(panel):
                formatter.write_dl(commands)


def build() -> typer.Typer:
    """The application with every command of this folder."""
    app = typer.Typer(
        name="chiasm",
        cls=Grouped,
        rich_markup_mode=None,
        help="Pictures, text, sound, video and documents in one searchable space.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    modules = [import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    panels = {panel: place for place, panel in enumerate(PANELS)}
    modules.sort(
        key=lambda m: (panels.get(getattr(m, "PANEL", "Methods"), len(panels)), getattr(m, "PLACE", 9), m.__name__)
    )
    for module in modules:
        name = module.__name__.rpartition(".")[2].rstrip("_").replace("_", "-")
        panel = getattr(module, "PANEL", "Methods")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name, rich_help_panel=panel)
        elif hasattr(module, "command"):
            app.command(name, rich_help_panel=panel)(module.command)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"chiasm {__version__}")
        raise typer.Exit()


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Pictures, text, sound, video and documents in one searchable space."""
    quiet_libraries()


def quiet_libraries() -> None:
    """Silences progress bars, advice and telemetry of the libraries below, unless ``CHIASM_DEBUG`` is set.

    Must run before they are imported; what the user has set in the environment stays.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if debugging():
        return
    for name, value in {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    }.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", module=r"chiasm(\.|$)")  # ours are meant for the user: one line each
    warnings.showwarning = _show_warning


def _show_warning(message: Warning | str, *where: Any, **more: Any) -> None:
    from chiasm.cli.console import note

    note(f"Warning: {message}")


def debugging() -> bool:
    return os.environ.get("CHIASM_DEBUG", "") not in ("", "0")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status.

    Args:
        argv: arguments without the program's name; default ``sys.argv[1:]``.

    Returns:
        0 if all went well, 1 if the command found nothing it could work on, 2 for a wrong call or input (one line on
        stderr says what, where and what to do), 130 after Ctrl-C.
    """
    from chiasm.cli.console import error

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold what the terminal's encoding does not
            stream.reconfigure(errors="backslashreplace")
    try:
        build()(args=None if argv is None else list(argv), prog_name="chiasm")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except KeyboardInterrupt:
        error("interrupted")
        return 130
    except ChiasmError as wrong:
        if debugging():
            raise
        error(str(wrong))
        return 2
    except Exception as fault:
        if debugging():
            raise
        error(f"unexpected {type(fault).__name__}: {fault}. Set CHIASM_DEBUG=1 to see where, and please report it")
        return 1
    return 0
