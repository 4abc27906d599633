"""What the pocket space's sound is worth: test recordings found by words, beside chance, with intervals; the table of ``sound.md``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chiasm.measure.intervals import Interval
from chiasm.measure.ranking import RankingReport, evaluate_scores

METRICS = ("hit@1", "hit@5", "map")
HEADING = "## What we measured"


@dataclass(frozen=True)
class Found:
    """Figures of words that look for recordings.

    Args:
        ranked: per-query figures.
        intervals: metric -> interval over original recordings (clips of one original stay together).
        chance: metric -> mean with the kinds of the recordings shuffled.
        kinds: kind -> interval of its average precision.
    """

    ranked: RankingReport
    intervals: dict[str, Interval]
    chance: dict[str, float]
    kinds: dict[str, Interval]


def search(found: np.ndarray, kinds: np.ndarray, queries: dict[str, np.ndarray]) -> RankingReport:
    """Words look for recordings.

    Args:
        found: unit vectors of the recordings, ``[N, D]``.
        kinds: the kind of each.
        queries: kind -> unit vectors of sentences ``[Q, D]``.

    Returns:
        Figures of all sentences in the order of ``queries``.
    """
    asked = np.repeat(list(queries), [len(v) for v in queries.values()])
    scores = np.concatenate([vectors @ found.T for vectors in queries.values()])
    return evaluate_scores(scores, [np.flatnonzero(kinds == kind) for kind in asked], metrics=(*METRICS, "precision@5"))


def nearest(found: np.ndarray, kinds: np.ndarray, queries: dict[str, np.ndarray]) -> RankingReport:
    """The other way round: which kind's first sentence is nearest to a recording; arguments as in `search`."""
    names = list(queries)
    texts = np.concatenate([rows[:1] for rows in queries.values()])
    return evaluate_scores(found @ texts.T, [np.array([names.index(k)]) for k in kinds], metrics=("hit@1", "hit@5"))


def measure(
    found: np.ndarray, kinds: np.ndarray, originals: np.ndarray, queries: dict[str, np.ndarray], *, resamples: int = 500
) -> Found:
    """`search` with intervals and chance.

    Args:
        found, kinds, queries: as in `search`, one sentence a kind.
        originals: which original recording each was cut from; they are what is resampled.
        resamples: bootstrap samples, and shufflings for chance.
    """
    rng = np.random.default_rng(0)
    clips = [[np.flatnonzero(originals == one) for one in np.unique(originals[kinds == kind])] for kind in queries]

    def figures(rows: np.ndarray, of: np.ndarray) -> dict[str, np.ndarray]:
        return search(found[rows], of[rows], queries).values

    def redrawn() -> np.ndarray:
        """Originals drawn within each kind, so that no kind is missing."""
        return np.concatenate([own[g] for own in clips for g in rng.integers(len(own), size=len(own))])

    every = np.arange(len(kinds))
    drawn = [figures(redrawn(), kinds) for _ in range(resamples)]
    shuffled = [figures(every, rng.permutation(kinds)) for _ in range(resamples)]
    seen = figures(every, kinds)

    def interval(metric: str, query: int | None = None) -> Interval:
        pick = slice(None) if query is None else slice(query, query + 1)
        own = clips if query is None else clips[pick]
        low, high = np.quantile([one[metric][pick].mean() for one in drawn], [0.025, 0.975])
        return Interval(float(seen[metric][pick].mean()), float(low), float(high), n=sum(map(len, own)))

    return Found(
        search(found, kinds, queries),
        {metric: interval(metric) for metric in METRICS},
        {metric: float(np.mean([one[metric] for one in shuffled])) for metric in METRICS},
        {kind: interval("map", i) for i, kind in enumerate(queries)},
    )


def table(
    by_label: Found, by_words: Found, back: RankingReport, kinds: np.ndarray, digits: RankingReport | None
) -> str:
    """The measured figures as Markdown.

    Args:
        by_label: each kind asked for by its label.
        by_words: by a sentence in which no word of the training names it.
        back: recordings look for their label.
        kinds: the kinds of the recordings.
        digits: spoken digits asked for by their words, if they were there.
    """
    lines = [
        f"{len(kinds)} test recordings of `esc10_sounds` (95% intervals over {by_label.intervals['map'].n} original recordings, of "
        "which no clip was trained on):",
        "",
        "| asked by | R@1 | R@5 | mAP |",
        "|---|---|---|---|",
    ]
    for name, found in (("label", by_label), ("other words", by_words)):
        cells = [_cell(found.intervals[metric]) for metric in METRICS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append(f"| chance | {' | '.join(f'{by_label.chance[metric]:.3f}' for metric in METRICS)} |")
    lines += [
        "",
        "R@1 and R@5: is one of the first (five) recordings right, over ten questions, one a kind.",
        f"The other way round, the label nearest to a recording is its own for {back.interval('hit@1').mean:.3f} "
        f"{_ends(back.interval('hit@1'))} of the recordings (chance {1 / len(by_label.kinds):.2f}).",
        "",
        "| kind | AP by label | AP by other words | nearest label right |",
        "|---|---|---|---|",
    ]
    for kind, by in by_label.kinds.items():
        right = float(back.values["hit@1"][kinds == kind].mean())
        lines.append(f"| {kind} | {_cell(by)} | {_cell(by_words.kinds[kind])} | {right:.2f} |")
    if digits is not None:
        lines += [
            "",
            f"Spoken digits (test part of `digits_audio_image`, speakers known, takes not): asked by word, R@1 {digits['hit@1']:.2f}, "
            f"mAP {digits['map']:.3f}.",
        ]
    return "\n".join(lines)


def _cell(of: Interval) -> str:
    return f"{of.mean:.3f} {_ends(of)}"


def _ends(of: Interval) -> str:
    return f"[{of.low:.3f}, {of.high:.3f}]"


def write_into(page: Path, measured: str) -> None:
    """Puts the table under its heading of a page, in the place of what was there."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(f"{HEADING}\n")
    after = re.search(r"^## ", rest, re.MULTILINE)
    tail = rest[after.start() :] if after else ""
    page.write_text(f"{before}{HEADING}\n\n{measured}\n{tail and f'{chr(10)}{tail}'}", encoding="utf-8")
