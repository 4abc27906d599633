"""The one error family: every message says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ChiasmError(Exception):
    """Base of all errors that Chiasm raises on purpose.

    Args:
        what: what was wrong, in one clause.
        where: the file, argument or item it concerns.
        fix: what the user can do about it.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        text = what if where is None else f"{where}: {what}"
        super().__init__(text if fix is None else f"{text}. {fix}")

    def __reduce__(self):  # keyword-only arguments must survive the trip back from a worker process
        return _rebuild, (type(self), self.what, self.where, self.fix)


def _rebuild(kind: type[ChiasmError], what: str, where: str | None, fix: str | None) -> ChiasmError:
    return kind(what, where=where, fix=fix)


class BadInput(ChiasmError, ValueError):
    """An argument is outside what the function accepts."""


class BadItem(ChiasmError):
    """One file or item cannot be read; indexing skips it, counts it and lists it."""


class UnsupportedModality(ChiasmError):
    """The space has no encoder for this modality."""


class UnknownName(BadInput):
    """A name (method, objective, space, option) that does not exist; the nearest ones are offered."""


class MissingExtra(ChiasmError, ImportError):
    """A feature needs packages of an extra that is not installed."""


class SpaceMismatch(ChiasmError):
    """Vectors of two different spaces were about to be mixed."""


class StoreError(ChiasmError):
    """A store cannot be opened, read or written."""


class StoreLocked(StoreError):
    """Another process is writing to the store."""


class EndpointError(ChiasmError):
    """A model's address did not answer, or not with anything that can be used; asking again later may help."""


class TrainingDiverged(ChiasmError):
    """The loss became NaN or infinite; the message names the step and the pairs."""


class DataNotFound(ChiasmError):
    """A data set that a claim or benchmark needs is not on this machine."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownName:
    """An `UnknownName` that offers the nearest known names.

    Args:
        kind: what the name stands for, for example ``"method"``.
        name: the name that was given.
        known: the names that exist.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        fix = f"Did you mean {' or '.join(near)}?"
    elif names:
        fix = f"Known: {', '.join(names[:20])}{' ...' if len(names) > 20 else ''}"
    else:
        fix = f"There is no {kind} yet"
    return UnknownName(f"unknown {kind} {name!r}", fix=fix)


def missing_extra(feature: str, extra: str, package: str) -> MissingExtra:
    """A `MissingExtra` that names the command which installs the extra.

    Args:
        feature: what the user wanted to do.
        extra: the extra of ``pyproject.toml`` that brings it.
        package: the package that could not be imported.
    """
    return MissingExtra(
        f"{feature} needs the package {package!r}", fix=f"Install it with: pip install 'chiasm[{extra}]'"
    )
