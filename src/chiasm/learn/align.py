"""`align`: a space and pairs in, a better space out. Encoders stay frozen and small heads train in seconds, or all of it is
fine-tuned.

    >>> aligned = chiasm.align("pairs.csv", space="pocket", out="my-space")
    >>> aligned.report.after["text to image"].interval("R@10")
    >>> chiasm.load("my-space"), SentenceTransformer("my-space")
"""

from __future__ import annotations

import inspect
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from chiasm.encode.pipeline import Progress
from chiasm.errors import BadInput
from chiasm.learn.align_run import Raw, Run
from chiasm.learn.frozen import Frozen, frozen, modality_of
from chiasm.learn.heads import head_for, head_model, trainable, whole_model
from chiasm.learn.held_out import encode
from chiasm.learn.pair_table import PairTable
from chiasm.learn.readers import read_pairs, table_of
from chiasm.learn.report import AlignReport, noisy_list
from chiasm.learn.retrieval import retrieval
from chiasm.learn.stages import Stage

# Chosen on the val split of aerial_captions_en (945 training pictures), which is never reported.
EPOCHS, BATCH_SIZE, RATE, PATIENCE = 8, 128, 3e-4, 3
# Fine-tuning of everything: the rate of sentence-transformers' examples.
UNFROZEN_EPOCHS, UNFROZEN_BATCH_SIZE, UNFROZEN_RATE = 2, 32, 2e-5
# From so many items a side its features lie on the disk as float16 memory maps: 200,000 x 1,664 floats are 1.3 GB.
LARGE = 200_000
# Small sets get more epochs, so that the optimizer makes at least so many steps.
LEAST_STEPS = 150


@dataclass
class Aligned:
    """The result of `align`.

    Args:
        space: the aligned space.
        report: figures, curves and suspicious pairs.
        table: the pairs that were used.
        path: where it was saved, or None.
    """

    space: Any
    report: AlignReport
    table: PairTable
    path: Path | None = None

    @property
    def model(self) -> Any:
        """The `SentenceTransformer` of the space."""
        return self.space.model


def align(
    pairs: str | Path | PairTable | Sequence[Sequence[Any]],
    space: Any = "pocket",
    objective: str | nn.Module = "info-nce",
    *,
    options: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    unfreeze: bool = False,
    epochs: float | None = None,
    batch_size: int | None = None,
    rate: float | None = None,
    patience: int | None = PATIENCE,
    seed: int = 0,
    resume: bool = False,
    report_split: str = "test",
    cache: Any = None,
    device: str | None = None,
    progress: Progress = False,
    **reading: Any,
) -> Aligned:
    """Teaches a space from pairs.

    Training stops when recall@10 on the ``val`` pictures has not risen for ``patience`` evaluations, and the best state is
    kept; if none is better than the start, the start is. The ``test`` pictures are only reported. A sentence that several
    pictures have is right for all of them, in training and in the figures.

    Args:
        pairs: a file or folder (`chiasm.learn.readers.read_pairs`), a table, or ``[(picture, caption), ...]``.
        space: a space or its name.
        objective: the name of an objective (`chiasm.learn.objectives.names`), or one.
        options: its arguments.
        out: folder to save to: a model that `chiasm.load` and ``SentenceTransformer(path)`` read, and ``report.json``.
        unfreeze: train the encoders too (slow without a GPU).
        epochs: at most; default 8, or as many as 150 steps take (2 with ``unfreeze``).
        batch_size: 128 (32 with ``unfreeze``); no picture stands twice in a batch.
        rate: learning rate; 3e-4 (2e-5 with ``unfreeze``).
        patience: evaluations without a better recall; None trains to the end.
        seed: of hold-out, order and heads.
        resume: go on with an interrupted run of the same settings; needs ``out``.
        report_split: ``"test"``, ``"val"`` or ``"train"``: what the figures are of.
        cache: see `chiasm.learn.frozen.frozen`.
        device: ``"cpu"`` keeps everything there.
        progress: True for bars.
        **reading: arguments of `read_pairs`.

    Raises:
        BadInput: fewer than two pairs, pictures that are all the same, a folder that holds something else, an objective that
            needs more than one vector an item, or other settings than those of the run to resume.
        UnknownName: an objective, option, space, split or column that does not exist; the nearest are offered.
        TrainingDiverged: the loss became NaN; names the step and the pairs.
        MissingExtra: ``chiasm[train]`` is not installed.
    """
    begin = time.perf_counter()
    target = None if out is None else _target(Path(out).expanduser())
    if resume and target is None:
        raise BadInput("there is nothing to resume", where="align", fix="Name the folder: out=...")
    if isinstance(space, str):
        from chiasm.encode import load

        space = load(space, device=device)
    table = _table(pairs, seed, reading)
    loss, title = _objective(objective, dict(options or {}), table)
    clock = {"read": time.perf_counter() - begin}

    routes, kinds, heads = _sides(space, table)
    start = time.perf_counter()
    sides: list[Frozen] = []
    maps = None if target is None else target.with_name(f"{target.name}.features")
    for name, entries, kind in zip("ab", (table.a, table.b), kinds):
        wanted = tuple(dict.fromkeys(("vector", kind)))
        large = maps is not None and len(entries) >= LARGE
        folder = maps / name if maps is not None and large else None
        of = modality_of(entries)
        sides.append(frozen(space, entries, wanted, folder=folder, cache=cache, modality=of, progress=progress))
    table = table.without(sides[0].failed, sides[1].failed)
    clock["encode"] = time.perf_counter() - start
    _check(table)

    settings = {
        "objective": title,
        "options": {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in (options or {}).items()},
        "unfreeze": unfreeze,
        "batch_size": batch_size or (UNFROZEN_BATCH_SIZE if unfreeze else BATCH_SIZE),
        "rate": rate or (UNFROZEN_RATE if unfreeze else RATE),
        "patience": patience,
        "seed": seed,
    }
    training = table.rows("train")
    per_epoch = math.ceil(len(training) / settings["batch_size"])
    usual = UNFROZEN_EPOCHS if unfreeze else max(EPOCHS, math.ceil(LEAST_STEPS / per_epoch))
    settings["epochs"] = usual if epochs is None else epochs
    if unfreeze:
        model = whole_model(space, heads)
        sources: list[Any] = [Raw(space, model, entries, route) for entries, route in zip((table.a, table.b), routes)]
        stage = Stage("everything", train=trainable(model), epochs=settings["epochs"], rate=settings["rate"])
    else:
        model = head_model(heads, str(space.device))
        sources = [side.features(sentence_embedding=kind) for side, kind in zip(sides, kinds)]
        stage = Stage("heads", epochs=settings["epochs"], rate=settings["rate"])
    start = time.perf_counter()
    run = Run(model, sources, table, dict(zip(("a", "b"), routes)), settings, target, per_epoch)
    trained = run.train(loss, stage, resume=resume, progress=bool(progress), device=device)
    clock["train"] = time.perf_counter() - start

    start = time.perf_counter()
    before = tuple(side.arrays["vector"] for side in sides)
    after = tuple(
        nn.functional.normalize(encode(model, source, route).vectors, dim=1).numpy()
        for source, route in zip(sources, routes)
    )
    shown, reported = _reported(table, report_split)
    notes = (
        []
        if reported == report_split
        else [f"There is no {report_split} split: the figures are of {reported}, and so are too good."]
    )
    names = _distinct([modality_of(entries) for entries in (table.a, table.b)])
    figures = [retrieval(one[0], one[1], table.pairs[shown], names, seed=seed) for one in (before, after)]
    notes += run.notes
    if getattr(type(loss), "similarity", None) is not None:
        notes.append(
            f"{title} scores pairs in its own way while it trains; the saved space compares by cosine, and so do these figures."
        )
    noisy, worst = noisy_list(after[0], after[1], table, seed=seed)
    clock["measure"] = time.perf_counter() - start
    facts = {
        "space": space.name,
        "fingerprint": space.fingerprint.to_json(),
        "pairs": table.counts(),
        "items": [len(np.unique(table.pairs[:, side])) for side in (0, 1)],
        "names": list(names),
        "reported": reported,
        "reported_pairs": len(shown),
        "encoded": sum(side.encoded for side in sides),
        **settings,
    }
    final = whole_model(space, heads) if not unfreeze else model
    final.eval()
    report = AlignReport(
        facts,
        trained.history,
        run.start,
        trained.best,
        figures[0],
        figures[1],
        noisy,
        worst,
        table.skipped,
        [*table.notes, *notes],
        trained.collapsed,
        {**clock, "total": 0.0},
        seed,
    )
    from chiasm.encode.model_space import ModelSpace

    made = ModelSpace(final, str(target) if target else f"{space.name} aligned")
    report.seconds["total"] = time.perf_counter() - begin
    if target is not None:
        _save(made, report, target)
        for rest in (run.folder, maps):
            if rest is not None:
                shutil.rmtree(rest, ignore_errors=True)
    return Aligned(made, report, table, target)


def _target(out: Path) -> Path:
    """The folder to save to: new, empty, or an earlier result of `align`."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "report.json").is_file())):
        raise BadInput("is there already and was not made by align", where=str(out), fix="Name another folder")
    return out


def _save(space: Any, report: AlignReport, target: Path) -> None:
    """Model first, report last, and in one move, so that a broken save leaves what was there."""
    fresh = target.with_name(f"{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.parent.mkdir(parents=True, exist_ok=True)
    try:
        space.save(fresh)
        report.save(fresh / "report.json")
        if target.exists():
            shutil.rmtree(target)
        fresh.rename(target)
    except OSError as error:
        raise BadInput(f"cannot be written ({error.strerror or error})", where=str(target)) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _table(pairs: Any, seed: int, reading: dict[str, Any]) -> PairTable:
    if isinstance(pairs, PairTable):
        return pairs
    if isinstance(pairs, (str, Path)):
        return read_pairs(pairs, seed=seed, **reading)
    return table_of(pairs, seed=seed, **reading)


def _objective(objective: str | nn.Module, options: dict[str, Any], table: PairTable) -> tuple[nn.Module, str]:
    """The objective and its name."""
    if isinstance(objective, nn.Module):
        return objective, type(objective).__name__
    from chiasm.learn.objectives import objective as make
    from chiasm.learn.objectives import objective_class

    kind = objective_class(objective)
    parameters = inspect.signature(kind).parameters
    classes = len(set(table.labels))
    if "classes" in parameters and "classes" not in options and classes > 1:
        options = {**options, "classes": classes}
    missing = [n for n, p in parameters.items() if p.default is p.empty and p.kind < 2 and n not in options]
    missing += [n for n, p in parameters.items() if p.default is p.empty and p.kind == 3 and n not in options]
    unknown = [n for n in options if n not in parameters]
    if missing and not unknown:
        raise BadInput(
            f"{objective} needs {', '.join(missing)}",
            where="objective",
            fix=f"Give --option {missing[0]}=VALUE" + (", or a column of labels" if missing == ["classes"] else ""),
        )
    return make(objective, **options), objective.replace("_", "-")


def _sides(space: Any, table: PairTable) -> tuple[tuple[str, str], tuple[str, str], dict[str, list[nn.Module]]]:
    """Route and kind of features of each side, and the heads by route (one, if both sides take the same route)."""
    torch.manual_seed(0)  # heads start from constants; modules draw weights before these are put in
    routes, kinds, heads = [], [], {}
    for entries in (table.a, table.b):
        modality = modality_of(entries)
        # Speech is aligned as the text that it is, also where the space hears other sounds.
        route = "text" if modality == "audio" and space.speech_as_text else space._route(modality)
        if route not in heads:
            heads[route] = head_for(space, route)
        routes.append(route)
        kinds.append(heads[route][1])
    return (routes[0], routes[1]), (kinds[0], kinds[1]), {route: head for route, (head, _) in heads.items()}


def _distinct(names: Sequence[str]) -> tuple[str, str]:
    return (names[0], names[1]) if names[0] != names[1] else (f"{names[0]} a", f"{names[1]} b")


def _check(table: PairTable) -> None:
    training = table.pairs[table.rows("train")]
    lost = (
        f" ({len(table.skipped)} skipped, first {table.skipped[0].where}: {table.skipped[0].reason})"
        if table.skipped
        else ""
    )
    if len(training) < 2:
        raise BadInput(f"{len(training)} pairs to train on{lost}", where="align", fix="A contrast needs at least two")
    for side, what in enumerate(table.columns):
        if len(np.unique(training[:, side])) < 2:
            raise BadInput(f"all training pairs have the same {what}", where="align", fix="Nothing can be told apart")


def _reported(table: PairTable, split: str) -> tuple[np.ndarray, str]:
    """The pairs the figures are of, and their split: val or train where there are no others."""
    for name in dict.fromkeys((split, "val", "train")):
        if len(rows := table.rows(name)):
            return rows, name
    raise BadInput("no pairs are left to report on", where="align")
