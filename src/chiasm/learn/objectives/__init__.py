"""Objectives by name: `objective("filip", keep=0.25)`. Each lies in a folder of its own with its ``method.toml``."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

ROOM = "learn/objectives"
# The baseline is no method of the catalogue, but it has a name like the others.
BASELINE = "info-nce"

__all__ = ["BASELINE", "names", "objective", "objective_class"]


def names() -> list[str]:
    """The names that `objective` takes: the baseline first, then the slugs of the catalogue."""
    from chiasm.catalog import methods

    return [BASELINE, *(m.slug for m in methods() if m.room == ROOM)]


def objective_class(name: str) -> type[nn.Module]:
    """The class of an objective.

    Raises:
        UnknownName: there is none of this name; the nearest are offered.
    """
    from chiasm.catalog import methods, slug_of
    from chiasm.errors import unknown_name

    slug = slug_of(name)
    if slug == BASELINE:
        from chiasm.learn.contrastive import InfoNCE

        return InfoNCE
    found = {m.slug: m for m in methods() if m.room == ROOM}
    if slug not in found:
        raise unknown_name("objective", name, [BASELINE, *found])
    module, _, attribute = found[slug].import_path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def objective(name: str, **options: Any) -> nn.Module:
    """An objective by its name.

    Args:
        name: a slug (hyphens or underscores), or ``"info-nce"``.
        **options: arguments of the class.

    Raises:
        UnknownName: an unknown name or option; the nearest are offered.
    """
    from chiasm.errors import unknown_name

    kind = objective_class(name)
    parameters = inspect.signature(kind).parameters
    for option in options:
        if option not in parameters:
            raise unknown_name(f"option of {name}", option, parameters)
    return kind(**options)
