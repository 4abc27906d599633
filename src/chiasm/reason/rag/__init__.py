"""Answers from passages: parser -> router -> retriever -> reranker -> generator; every answer has sources or abstains.

from chiasm.reason.rag import Pipeline
pipeline = Pipeline(); pipeline.add("report.pdf"); pipeline.ask("Who runs the plant in Orla?")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from chiasm.reason.rag import merge
from chiasm.reason.rag.messages import Answer, Draft, Passage, Question, Retrieved, Route, Source, Step
from chiasm.reason.rag.pipeline import (
    EVERYTHING,
    NONE,
    Generator,
    Parser,
    Pipeline,
    Reranker,
    Retriever,
    Router,
    as_retrieved,
    everything,
)

_LAZY = {
    "Corpora": "corpora",
    "Endpoint": "endpoint",
    "ExtractiveGenerator": "extractive",
    "OpenAIGenerator": "openai_generator",
    "StoreRetriever": "store_retriever",
    "over_store": "store_retriever",
    "read_units": "reader",
}

__all__ = [
    "EVERYTHING",
    "NONE",
    "Answer",
    "Corpora",
    "Draft",
    "Endpoint",
    "ExtractiveGenerator",
    "Generator",
    "OpenAIGenerator",
    "Parser",
    "Passage",
    "Pipeline",
    "Question",
    "Reranker",
    "Retrieved",
    "Retriever",
    "Route",
    "Router",
    "Source",
    "Step",
    "StoreRetriever",
    "as_retrieved",
    "everything",
    "merge",
    "over_store",
    "read_units",
]

if TYPE_CHECKING:
    from chiasm.reason.rag.corpora import Corpora
    from chiasm.reason.rag.endpoint import Endpoint
    from chiasm.reason.rag.extractive import ExtractiveGenerator
    from chiasm.reason.rag.openai_generator import OpenAIGenerator
    from chiasm.reason.rag.reader import read_units
    from chiasm.reason.rag.store_retriever import StoreRetriever, over_store


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"chiasm.reason.rag.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'chiasm.reason.rag' has no attribute {name!r}")
