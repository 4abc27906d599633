"""MCR among retrieval objectives: InfoNCE does the retrieving, MCR balances a classifier on top of the same latents.

The classes are those of the set, else pseudo-classes: k-means on the frozen features of the training pictures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from chiasm.learn.contrastive import InfoNCE
from chiasm.learn.objectives.mcr.objective import MCR
from chiasm.learn.pairs import Pairs
from chiasm.learn.trial import Trial

PSEUDO_CLASSES = 20


class RegularizedRetrieval(nn.Module):
    """InfoNCE plus `MCR` at a weight.

    Args:
        mcr: the classifier and its regularizer.
        weight: of all parts of MCR beside the retrieval loss.
    """

    def __init__(self, mcr: MCR, weight: float = 0.3) -> None:
        super().__init__()
        self.mcr, self.retrieval, self.weight = mcr, InfoNCE(), weight

    def on_progress(self, step: int, steps: int) -> None:
        self.mcr.on_progress(step, steps)

    def forward(self, a: Tensor, b: Tensor, *, labels: Tensor, groups: Any = None) -> dict[str, Tensor]:
        """The parts of InfoNCE, and those of MCR with ``mcr_`` before their names."""
        found = self.mcr(a, b, labels=labels, groups=groups)
        return self.retrieval(a, b, groups=groups) | {f"mcr_{k}": self.weight * v for k, v in found.items()}


def classes_of(pairs: Pairs, count: int = PSEUDO_CLASSES, seed: int = 0) -> np.ndarray:
    """Class numbers ``0 .. C-1`` of pairs, int64 ``[N]``: their labels, or clusters of their pictures' frozen features.

    Args:
        pairs: their column ``a`` holds frozen features (``input_features`` ``[N, D]`` or ``[N, L, D]``).
        count: clusters at most; 20.
        seed: of k-means.
    """
    if "labels" in pairs.per_pair:
        return np.unique(pairs.per_pair["labels"], return_inverse=True)[1].astype(np.int64)
    from sklearn.cluster import KMeans

    rows, row = np.unique(pairs.rows["a"], return_inverse=True)
    source = pairs.source("a")
    means = []
    for start in range(0, len(rows), 512):
        features = source.batch(rows[start : start + 512].tolist())["input_features"]
        means.append((features.mean(dim=1) if features.ndim == 3 else features).numpy())
    vectors = np.concatenate(means)
    clusters = KMeans(min(count, len(vectors)), n_init="auto", random_state=seed).fit_predict(vectors)
    return clusters[row].astype(np.int64)


def run(trial: Trial) -> tuple[Any, nn.Module]:
    """Trains with the trial's budget; see `chiasm.learn.trial`."""
    model = trial.model()
    classes = classes_of(trial.pairs, seed=trial.seed)
    assert trial.pairs.groups is not None
    pairs = Pairs(
        trial.pairs.sources, trial.pairs.rows, trial.pairs.groups, {**trial.pairs.per_pair, "labels": classes}
    )
    dims = [model[0].sub_modules[side][-1].get_embedding_dimension() for side in ("a", "b")]
    options = {"contrast": 0.5, "contrast_by": "pairs", **trial.options}
    objective = RegularizedRetrieval(MCR(int(classes.max()) + 1, dims, **options))
    trial.fit(model, objective, pairs=pairs)
    return model, objective
