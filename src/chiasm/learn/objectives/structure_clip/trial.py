"""Structure-CLIP in a trial: graphs and negatives from the trial's sentences, knowledge added by the text tower.

The parser knows English. Where it finds next to nothing in the sentences (another language), there are no negatives and no
knowledge, and the trial trains with the plain contrastive loss.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chiasm.learn.features import Features
from chiasm.learn.objectives.structure_clip.columns import Structure, with_structure
from chiasm.learn.objectives.structure_clip.knowledge import KnowledgeEncoder, KnowledgeTower, triple_ids
from chiasm.learn.objectives.structure_clip.objective import StructureCLIP
from chiasm.learn.trial import Trial
from chiasm.learn.words import Words

# With fewer sentences than this share understood, the texts are taken for another language.
LEAST_PARSED = 0.3


class _KnownTexts(KnowledgeTower):
    """Looks the triples of a trial's own captions up by their row, so that test captions have theirs, too."""

    def __init__(self, modules: Any, knowledge: KnowledgeEncoder, table: np.ndarray, **options: Any) -> None:
        super().__init__(modules, knowledge, **options)
        self.table = nn.Buffer(torch.from_numpy(table), persistent=False)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        if "triples" not in features:
            rows: Tensor = features["rows"]
            features = {**features, "triples": self.table[rows.clamp_min(0)]}
        return super().forward(features, **kwargs)


def run(trial: Trial) -> tuple[Any, StructureCLIP]:
    """Trains towers with this trial's budget.

    Returns:
        The model and the objective.
    """
    model = trial.model()
    source = trial.pairs.source("b")
    structure = Structure.of(trial.texts)
    english = structure.parsed >= LEAST_PARSED and isinstance(source, Features) and "input_ids" in source.runs
    if not english:
        objective = StructureCLIP(**trial.options)
        trial.fit(model, objective)
        return model, objective
    assert isinstance(source, Features)
    known = _vocabulary(trial.texts, source)

    def features(texts: list[str]) -> Features:
        return Features.ragged("input_ids", [[known[w] for w in _split(t) if w in known] or [1] for t in texts])

    words = Words.of(list(trial.texts))
    router: Any = model[0]
    inner = list(router.sub_modules["b"])
    out = inner[-1].get_embedding_dimension()
    knowledge = KnowledgeEncoder(len(words), width=64, out=out)
    tower = _KnownTexts(inner, knowledge, triple_ids(structure.graphs, words), words=words)
    router.sub_modules["b"] = nn.ModuleList([tower.to(model.device)])
    pairs = with_structure(trial.pairs, trial.texts, features, words=words, structure=structure, seed=trial.seed)
    objective = StructureCLIP(**{"fused": True, **trial.options})
    trial.fit(model, objective, pairs=pairs, routes={"negative": "b"})
    return model, objective


def _split(text: str) -> list[str]:
    """The words of a text as `Words` splits it."""
    return re.findall(r"[^\W_]+", text.lower())


def _vocabulary(texts: Any, source: Features) -> dict[str, int]:
    """Word -> id of the trial's own vocabulary, read off the captions: negatives have no other words."""
    known: dict[str, int] = {}
    assert source.offsets is not None
    ids = source.runs["input_ids"]
    for text, start, end in zip(texts, source.offsets, source.offsets[1:]):
        words = _split(text)
        if len(words) == end - start:
            known.update(zip(words, (int(i) for i in ids[start:end])))
    return known
