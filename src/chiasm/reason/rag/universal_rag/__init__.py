"""UniversalRAG: a router picks the corpus by modality and granularity, then retrieval happens within it."""

from __future__ import annotations

from chiasm.reason.rag.universal_rag.evaluation import Asked, Evaluation, evaluate, exact_match, rouge_l, token_f1
from chiasm.reason.rag.universal_rag.hub_routers import ClassifierRouter, LabelWordRouter
from chiasm.reason.rag.universal_rag.routers import (
    EmbeddingRouter,
    EnsembleRouter,
    FixedRouter,
    OracleRouter,
    PromptRouter,
    QuestionRouter,
    RandomRouter,
    RuleRouter,
)
from chiasm.reason.rag.universal_rag.targets import PAPER, TARGETS, Target, targets
from chiasm.reason.rag.universal_rag.trained import TrainedRouter
from chiasm.reason.rag.universal_rag.universal import UniversalRAG, corpus_of
from chiasm.reason.rag.universal_rag.vectors import Parents, closed, gap, mixed, parts, split_all

__all__ = [
    "PAPER",
    "TARGETS",
    "Asked",
    "ClassifierRouter",
    "EmbeddingRouter",
    "EnsembleRouter",
    "Evaluation",
    "FixedRouter",
    "LabelWordRouter",
    "OracleRouter",
    "Parents",
    "PromptRouter",
    "QuestionRouter",
    "RandomRouter",
    "RuleRouter",
    "Target",
    "TrainedRouter",
    "UniversalRAG",
    "closed",
    "corpus_of",
    "evaluate",
    "exact_match",
    "gap",
    "mixed",
    "parts",
    "rouge_l",
    "split_all",
    "targets",
    "token_f1",
]
