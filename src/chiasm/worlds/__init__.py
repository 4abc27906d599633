"""Generators with full ground truth: scenes, paired embeddings with planted faults, small graphs, a mini dual encoder.

Everything is made from a seed and a version, needs no network, and knows the truth about itself. Names are imported when
they are first used; only `mini_clip` needs torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_LAZY = {
    "Caption": "captions",
    "Clip": "motion",
    "KnowledgeGraph": "graphs",
    "MiniClip": "mini",
    "MiniSettings": "mini",
    "Negative": "captions",
    "PairWorld": "pairs",
    "Question": "questions",
    "Scene": "scenes",
    "SceneObject": "scenes",
    "SceneSettings": "layout",
    "SceneWorld": "scenes",
    "clip": "motion",
    "decode": "sound",
    "holds": "captions",
    "make_graph": "graphs",
    "make_pairs": "pairs",
    "make_scenes": "scenes",
    "mini_clip": "mini",
    "negatives": "captions",
    "parse": "language",
    "say": "language",
    "speak": "sound",
    "tones": "sound",
}

__all__ = [
    "Caption",
    "Clip",
    "KnowledgeGraph",
    "MiniClip",
    "MiniSettings",
    "Negative",
    "PairWorld",
    "Question",
    "Scene",
    "SceneObject",
    "SceneSettings",
    "SceneWorld",
    "clip",
    "decode",
    "holds",
    "make_graph",
    "make_pairs",
    "make_scenes",
    "mini_clip",
    "negatives",
    "parse",
    "say",
    "speak",
    "tones",
]

if TYPE_CHECKING:
    from chiasm.worlds.captions import Caption, Negative, holds, negatives
    from chiasm.worlds.graphs import KnowledgeGraph, make_graph
    from chiasm.worlds.language import parse, say
    from chiasm.worlds.layout import SceneSettings
    from chiasm.worlds.mini import MiniClip, MiniSettings, mini_clip
    from chiasm.worlds.motion import Clip, clip
    from chiasm.worlds.pairs import PairWorld, make_pairs
    from chiasm.worlds.questions import Question
    from chiasm.worlds.scenes import Scene, SceneObject, SceneWorld, make_scenes
    from chiasm.worlds.sound import decode, speak, tones


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"chiasm.worlds.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'chiasm.worlds' has no attribute {name!r}")
