"""All objectives side by side: the same towers, pairs, steps and seeds. `chiasm compare` prints what `compare` measures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chiasm.catalog import PACKAGE
from chiasm.claims.data import Data
from chiasm.claims.run import provenance, sources_hash
from chiasm.errors import BadInput, unknown_name
from chiasm.measure.intervals import grouped_mean_interval

if TYPE_CHECKING:
    from chiasm.learn.trial import Trial

# What the table shows, and how each figure is read off a report.
FIGURES = {"R@1": "hit@1", "R@5": "hit@5", "R@10": "hit@10"}
WAYS = {"text to image": "b_to_a", "image to text": "a_to_b"}
SCENES, AERIAL, NOISY, PHOTOS = (
    "scenes (patch vectors)",
    "aerial photographs, English captions",
    "aerial photographs, 40 % of the captions shuffled",
    "COCO photographs, Vietnamese captions",
)
# The budget of every arm. Rate and steps were chosen for the baseline on validation pairs, seed 1000.
STEPS, BATCH, RATE = 300, 64, 1e-3
WIDTH = 64
_CORE = [
    *(
        PACKAGE / "learn" / f"{name}.py"
        for name in (
            "contrastive",
            "features",
            "held_out",
            "momentum",
            "pair_trainer",
            "pairs",
            "sentence_loss",
            "stages",
            "towers",
            "training",
            "trial",
            "words",
        )
    ),
    Path(__file__),
]


@dataclass
class SideBySide:
    """Figures of every setting, objective and seed.

    Args:
        runs: one dict a run: ``setting``, ``objective``, ``seed``, ``seconds`` (of CPU time), ``figures`` and per-query ``hits`` of R@10.
        about: budget and provenance.
    """

    runs: list[dict[str, Any]] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)

    def of(self, setting: str, objective: str) -> list[dict[str, Any]]:
        """The runs of one cell, by seed."""
        found = [r for r in self.runs if (r["setting"], r["objective"]) == (setting, objective)]
        return sorted(found, key=lambda r: r["seed"])

    @property
    def settings(self) -> list[str]:
        return list(dict.fromkeys(r["setting"] for r in self.runs))

    @property
    def objectives(self) -> list[str]:
        return list(dict.fromkeys(r["objective"] for r in self.runs))

    def gain(self, setting: str, objective: str, baseline: str, way: str) -> Any:
        """Interval of the gain in R@10 over the baseline, paired by query and seed; None if there is nothing to compare."""
        ours, theirs = self.of(setting, objective), self.of(setting, baseline)
        both = [(a, b) for a in ours for b in theirs if a["seed"] == b["seed"]]
        if not both or objective == baseline:
            return None
        return grouped_mean_interval([100 * (_hits(a, way) - _hits(b, way)) for a, b in both])

    def cells(self, setting: str, baseline: str = "info-nce") -> list[list[str]]:
        """The table of one setting: a head, then one line an objective, means with standard deviations over the seeds."""
        heads = [f"{way} {name}" for way in WAYS for name in ("R@1", "R@10")]
        lines = [["objective", *heads, "gain in text to image R@10 [95 %]", "CPU seconds"]]
        for name in self.objectives:
            runs = self.of(setting, name)
            if not runs:
                continue
            means = [
                _spread([100 * r["figures"][way][figure] for r in runs]) for way in WAYS for figure in ("R@1", "R@10")
            ]
            gain = self.gain(setting, name, baseline, "text to image")
            shown = "" if gain is None else f"{gain.mean:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}]"
            lines.append([name, *means, shown, f"{np.median([r['seconds'] for r in runs]):.0f}"])
        return lines

    def markdown(self, baseline: str = "info-nce") -> str:
        """One table a setting."""
        text = []
        for setting in self.settings:
            heads, *lines = self.cells(setting, baseline)
            rows = [f"| {' | '.join(line)} |" for line in lines]
            text += [f"### {setting}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *rows, ""]
        return "\n".join(text)


def _hits(run: dict[str, Any], way: str) -> np.ndarray:
    return np.array(run["hits"][way], dtype=np.float64)


def _spread(values: Sequence[float]) -> str:
    sd = f" ({np.std(values, ddof=1):.1f})" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{sd}"


def compare(
    data: Data,
    *,
    objectives: Sequence[str] | None = None,
    settings: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = STEPS,
    out: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> SideBySide:
    """Trains every objective in every setting with every seed and measures recall on the test pairs.

    Args:
        data: where real sets are; without them the generated scenes alone run.
        objectives: names; default all, with plain InfoNCE first.
        settings: names of `SETTINGS`; default all whose data is here.
        seeds: decide weights and batches (and the scenes).
        steps: optimizer steps of every arm.
        out: a JSON file; runs that it holds with the same code and budget are not made again.
        progress: called with (what runs, runs done, runs).

    Raises:
        UnknownName: an objective or setting that does not exist.
        BadInput: no seed.
    """
    from chiasm.learn.objectives import BASELINE, names, objective_class

    chosen = list(objectives or names())
    if BASELINE not in chosen:
        chosen.insert(0, BASELINE)
    for name in chosen:
        objective_class(name)
    for name in settings or ():
        if name not in SETTINGS:
            raise unknown_name("setting", name, SETTINGS)
    if not seeds:
        raise BadInput("no seed", where="compare")
    here = [name for name in settings or SETTINGS if SETTINGS[name](0, data, 2) is not None]
    table = SideBySide(about={"steps": steps, "batch_size": BATCH, "rate": RATE, "width": WIDTH})
    code = {name: _code(name) for name in chosen}
    kept = _kept(out, table.about, code)
    table.about |= provenance(data, code=sources_hash(_CORE), source=Path(__file__))
    cells = [(setting, seed, name) for setting in here for seed in seeds for name in chosen]
    trial_of = lru_cache(maxsize=1)(lambda setting, seed: SETTINGS[setting](seed, data, steps))
    for done, cell in enumerate(cells):
        setting, seed, name = cell
        if progress:
            progress(f"{setting}: {name}", done, len(cells))
        earlier = kept.pop(cell, None)
        table.runs.append(earlier or _run(trial_of(setting, seed), setting, seed, name, code[name]))
        if out is not None and earlier is None:
            _write(out, table, kept.values())
    if progress:
        progress("done", len(cells), len(cells))
    return table


def _write(out: Path, table: SideBySide, rest: Iterable[dict[str, Any]]) -> None:
    """Writes the runs made or taken over so far, and those of an earlier call that are not asked for now."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"about": table.about, "runs": [*table.runs, *rest]}), encoding="utf-8")


def _code(name: str) -> str:
    """Hash of the sources that decide an arm: the shared core, and the objective's own room."""
    from chiasm.learn.objectives import objective_class

    module = objective_class(name).__module__.rpartition(".")[0]
    room = PACKAGE.joinpath(*module.split(".")[1:])
    return sources_hash([*_CORE, *(room.rglob("*.py") if room != PACKAGE / "learn" else ())])


def _run(trial: Any, setting: str, seed: int, name: str, code: str) -> dict[str, Any]:
    start = time.process_time()
    reports = trial.run(name)
    seconds = time.process_time() - start
    return {
        "setting": setting,
        "objective": name,
        "seed": seed,
        "code": code,
        "seconds": round(seconds, 2),
        "figures": {way: {f: reports[key][metric] for f, metric in FIGURES.items()} for way, key in WAYS.items()},
        "hits": {way: reports[key].values["hit@10"].astype(int).tolist() for way, key in WAYS.items()},
    }


def _kept(out: Path | None, about: dict[str, Any], code: dict[str, str]) -> dict[tuple[str, int, str], dict[str, Any]]:
    """Runs of an earlier call that may stand: same code, same budget."""
    if out is None or not out.exists():
        return {}
    found = read(out)
    if any(found.about.get(key) != about[key] for key in ("steps", "batch_size", "rate", "width")):
        return {}
    runs = [r for r in found.runs if r["code"] == code.get(r["objective"], r["code"])]
    return {(r["setting"], r["seed"], r["objective"]): r for r in runs}


def _scenes(seed: int, data: Data, steps: int) -> Trial | None:
    from chiasm.learn import Features, Pairs
    from chiasm.learn.trial import Trial
    from chiasm.worlds.patches import COLORS, FIRST, OBJECTS, RELATIONS, patch_scenes

    n, test = (400, 100) if data.smoke else (3000, 500)
    world = patch_scenes(n + test, seed=seed)
    words = ["", "", "", *COLORS, *OBJECTS, *RELATIONS]
    assert len(words) == FIRST + 20
    texts = [" ".join(words[i] for i in row) for row in world.captions[0]]
    sources = {
        "a": Features({"input_features": world.patches}),
        "b": Features.ragged("input_ids", list(world.captions[0])),
    }
    pairs = Pairs(sources, per_pair={"labels": world.shape[:, 0]})
    return Trial(SCENES, pairs[:n], pairs[n:], _towers(32, world.vocabulary), texts, seed, steps, BATCH, RATE)


def _photographs(name: str, setting: str, noise: float = 0.0) -> Callable[[int, Data, int], Trial | None]:
    def make(seed: int, data: Data, steps: int) -> Trial | None:
        from chiasm.claims.captioned import captioned_patches
        from chiasm.learn import Features, Pairs
        from chiasm.learn.trial import Trial
        from chiasm.learn.words import Words

        found = captioned_patches(data, name)
        if found is None:
            return None
        # Equal sentences are one item, so that every picture they were written for counts as right.
        number = {sentence: i for i, sentence in enumerate(dict.fromkeys(found.sentences))}
        rows = np.array([number[s] for s in found.sentences])
        train = found.split[found.image_of] == "train"
        words = Words.of([s for s, is_train in zip(found.sentences, train) if is_train])
        sources = {
            "a": Features({"input_features": found.patches}),
            "b": Features.ragged("input_ids", words.ids(list(number), longest=40)),
        }
        labels = np.unique(found.labels, return_inverse=True)[1][found.image_of]
        known = {"labels": labels} if len(set(found.labels)) > 1 else {}
        pairs = Pairs(sources, {"a": found.image_of, "b": rows}, per_pair=known)
        trained = pairs[train].shuffled(noise, seed)[0] if noise else pairs[train]
        test = pairs[found.split[found.image_of] == "test"]
        towers = _towers(found.patches.shape[2], len(words))
        return Trial(setting, trained, test, towers, list(number), seed, steps, BATCH, RATE)

    return make


def _towers(features: int, vocabulary: int) -> Callable[[], Any]:
    def make() -> Any:
        from chiasm.learn.towers import Tower, dual_tower

        pictures, texts = Tower(features, width=WIDTH, out=WIDTH), Tower(vocabulary=vocabulary, width=WIDTH, out=WIDTH)
        return dual_tower(pictures, texts, device="cpu")

    return make


SETTINGS: dict[str, Callable[[int, Data, int], Any]] = {
    SCENES: _scenes,
    AERIAL: _photographs("aerial_captions_en", AERIAL),
    NOISY: _photographs("aerial_captions_en", NOISY, noise=0.4),
    PHOTOS: _photographs("photo_captions_vi", PHOTOS),
}


def read(path: Path) -> SideBySide:
    """What an earlier `compare` wrote.

    Raises:
        BadInput: it is no such file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return SideBySide(found["runs"], found["about"])
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"not a comparison ({error})", where=str(path), fix="Run: chiasm compare") from error


def rows_of(table: SideBySide) -> Iterator[dict[str, Any]]:
    """The runs without their per-query figures, for ``--json``."""
    for run in table.runs:
        yield {key: value for key, value in run.items() if key != "hits"}
