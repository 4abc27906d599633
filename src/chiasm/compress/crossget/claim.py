"""The claim of CrossGET: its tokens keep more of a dual encoder's recall than ToMe's, and far more than random ones.

The mini dual encoder (4 layers, 64 patches) loses 54 of its patches, most of them early; captions and pictures of scenes
look for each other. Without training, then after one epoch of fine-tuning with every arm from the same weights.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.modules import InputModule
from torch import Tensor, nn

from chiasm.blocks.merging import bipartite, complete_graph
from chiasm.claims import Claim, Data, Gate, Row
from chiasm.compress.crossget import CrossGET, CrossGuided, ToMe, TowerReduction
from chiasm.learn.contrastive import InfoNCE
from chiasm.learn.pairs import Pairs
from chiasm.learn.stages import Stage
from chiasm.learn.towers import dual_tower
from chiasm.learn.training import train
from chiasm.worlds.captions import captions
from chiasm.worlds.mini import MiniClip, MiniSettings, mini_clip
from chiasm.worlds.scenes import SceneWorld, make_scenes

FREE, TUNED, NOISE, PAIRS = "scenes, no training", "scenes, fine-tuned", "noise pictures", "clustered features"
EVEN = "scenes, 12 in every layer"
# Tokens that go in each layer, chosen on seed 1000: merging 12 in each of the 4 layers, the published schedule, costs this
# tower nothing with any matching (its own setting shows it), and saves too little on a sequence of 64.
R = (28, 16, 8, 2)
# Without a cross token ToMe has a few percent fewer FLOPs at the same r; with four tokens fewer merged it has as many.
EQUAL = (28, 14, 6, 2)
SMOKE = MiniSettings(single=64, scenes=64, single_epochs=1, epochs=1)


def run(seed: int, data: Data) -> Iterator[Row]:
    """Rows of one seed."""
    settings = SMOKE if data.smoke else MiniSettings()
    n = 40 if data.smoke else 600
    world = make_scenes(
        n, seed=8_000_000 + seed, objects=(2, 3), grid=settings.grid, jitter=settings.jitter, split="train"
    )
    mini = mini_clip(seed=seed, settings=settings)
    yield from _matching(seed)
    yield from _training_free(mini, world)
    yield from _noise(mini, seed, n)
    yield from _fine_tuned(mini, settings, world, seed, 64 if data.smoke else 4096)


def _arms() -> dict[str, TowerReduction | None]:
    return {
        "full": None,
        "CrossGET": CrossGET(R),
        "ToMe": ToMe(R),
        "ToMe, equal FLOPs": ToMe(EQUAL),
        "random": ToMe(R, matching="random"),
        "no importance": CrossGET(R, importance="none"),
        "bipartite": CrossGET(R, matching="bipartite"),
        "no guided matching": CrossGET(R, guided_matching=False),
        "no guided ensemble": CrossGET(R, guided_ensemble=False),
        "receive best": CrossGET(R, matching="receive_best"),
        "full keys": CrossGET(R, keys="full"),
        "attention as importance": CrossGET(R, importance="attention"),
    }


# Arms that the smoke run fine-tunes, and those without a training of their own in the full run.
_SMOKE = ("full", "CrossGET", "ToMe", "ToMe, equal FLOPs")
_UNTRAINED = ("random", "receive best", "no importance", "full keys", "attention as importance")


def _training_free(mini: MiniClip, world: SceneWorld) -> Iterator[Row]:
    pictures = world.pictures()
    names = [captions(scene)[0].text for scene in world]
    texts = mini.encode_texts(names)
    for arm, reduction in _arms().items():
        vectors, seconds, share = _encode(mini, pictures, reduction)
        yield Row.of(FREE, arm, "R@1", _recall(vectors, texts, names), seconds=seconds)
        if reduction is not None:
            yield Row(FREE, arm, "share of FLOPs", share)
            yield Row(FREE, arm, "share of latency", _latency(mini, pictures[:64], reduction))
    for arm, reduction in {"CrossGET": CrossGET(12), "ToMe": ToMe(12), "random": ToMe(12, matching="random")}.items():
        vectors, seconds, share = _encode(mini, pictures, reduction)
        yield Row.of(EVEN, arm, "R@1", _recall(vectors, texts, names), seconds=seconds)
        yield Row(EVEN, arm, "share of FLOPs", share)


def _encode(mini: MiniClip, pictures: np.ndarray, reduction: TowerReduction | None) -> tuple[np.ndarray, float, float]:
    """Unit vectors, seconds, and the share of the tower's FLOPs."""
    share = 1.0
    if reduction is not None:
        reduction.attach(mini.model)
        full, less = reduction.flops()
        share = less / full
    start = time.perf_counter()
    try:
        return mini.encode_pictures(pictures, batch_size=64), time.perf_counter() - start, share
    finally:
        if reduction is not None:
            reduction.detach()


def _latency(mini: MiniClip, pictures: np.ndarray, reduction: TowerReduction, times: int = 9) -> float:
    """Seconds of encoding a batch with the reduction over those without it: median over rounds that take turns."""
    pixels = mini.pixels(pictures)

    def seconds() -> float:
        start = time.perf_counter()
        mini.model.get_image_features(pixel_values=pixels)
        return time.perf_counter() - start

    shares = []
    with torch.inference_mode():
        for _ in range(times + 1):
            full = seconds()
            reduction.attach(mini.model)
            shares.append(seconds() / full)
            reduction.detach()
    return float(np.median(shares[1:]))


def _recall(pictures: np.ndarray, texts: np.ndarray, names: list[str]) -> np.ndarray:
    """100 where the own picture (then: the own text) comes first; ties count against it, equal captions as right."""
    same = np.array(names)[:, None] == np.array(names)[None]
    hits = []
    for scores in (texts @ pictures.T, pictures @ texts.T):
        own = np.where(same, scores, -np.inf).max(axis=1, keepdims=True)
        hits.append(((scores >= own) & ~same).sum(axis=1) == 0)
    return 100.0 * np.concatenate(hits)


def _noise(mini: MiniClip, seed: int, n: int) -> Iterator[Row]:
    """Pictures without redundancy: each patch a color of its own, in families of ten that differ in two patches.

    Every patch is needed to tell the family apart, so a reduced vector must often fail to find its full one.
    """
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 256, (-(-n // 10), 64, 3), dtype=np.uint8).repeat(10, axis=0)[:n]
    for one in cells:
        one[rng.choice(64, 2, replace=False)] = rng.integers(0, 256, (2, 3))
    cells = cells.reshape(n, 8, 8, 3)
    pictures = cells.repeat(8, axis=1).repeat(8, axis=2)
    full = mini.encode_pictures(pictures, batch_size=64)
    labels = [str(i) for i in range(n)]
    for arm, reduction in _arms().items():
        if arm in ("full", "CrossGET", "ToMe", "random"):
            yield Row.of(
                NOISE, arm, "R@1 of its own vector", _recall(_encode(mini, pictures, reduction)[0], full, labels)
            )
    still = CrossGET(0)
    difference = np.abs(_encode(mini, pictures, still)[0] - full).max()
    yield Row(NOISE, "r = 0", "largest difference", float(difference))


def _matching(seed: int, tokens: int = 197, width: int = 16, r: int = 16, draws: int = 30) -> Iterator[Row]:
    """The matching alone: mean similarity of the pairs on clustered Gaussian features (the card's pilot)."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(draws, 40, width, generator=generator)
    chosen = torch.randint(0, 40, (draws, tokens), generator=generator)
    x = centers.gather(1, chosen[:, :, None].expand(-1, -1, width)) + 0.8 * torch.randn(
        draws, tokens, width, generator=generator
    )
    keys = nn.functional.normalize(x, dim=-1)
    found = {
        "ToMe": bipartite(keys, r),
        "CrossGET": complete_graph(keys, r),
        "receive best": complete_graph(keys, r, precedence="receive_best"),
    }
    for arm, matching in found.items():
        yield Row.of(PAIRS, arm, "similarity of merged pairs", 100.0 * matching.similarity.mean(dim=1).numpy())


# ---- fine-tuning


class _Side(InputModule):
    """One tower of the mini dual encoder as a module of sentence-transformers."""

    def __init__(self, clip: Any, picture: bool) -> None:
        super().__init__()
        self.clip, self.picture = clip, picture

    def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        return {"pixel_values" if self.picture else "input_ids": torch.stack([torch.as_tensor(one) for one in inputs])}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        if self.picture:
            out = self.clip.get_image_features(pixel_values=features["pixel_values"])
        else:
            out = self.clip.get_text_features(
                input_ids=features["input_ids"], attention_mask=features["attention_mask"]
            )
        return {**features, "sentence_embedding": nn.functional.normalize(out.pooler_output, dim=-1)}

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    def get_embedding_dimension(self) -> int:
        return self.clip.config.projection_dim


class _Rows:
    """Tensors of equal length as the source of a column."""

    def __init__(self, **tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def batch(self, rows: Any) -> dict[str, Tensor]:
        index = torch.as_tensor(list(rows))
        return {name: value[index] for name, value in self.tensors.items()} | {"rows": index}


def _fine_tuned(mini: MiniClip, settings: MiniSettings, world: SceneWorld, seed: int, scenes: int) -> Iterator[Row]:
    """One epoch from the same weights for every arm; the schedule and the order of the pairs are the same."""
    learned = make_scenes(
        scenes, seed=9_000_000 + seed, objects=(1, 3), grid=settings.grid, jitter=settings.jitter, split="train"
    )
    said = [captions(scene)[0].text for scene in learned]
    tokens = mini.tokens(said)
    groups = np.unique(said, return_inverse=True)[1]
    pairs = Pairs({"a": _Rows(pixel_values=mini.pixels(learned.pictures())), "b": _Rows(**tokens)}, groups=groups)
    start = {name: value.clone() for name, value in mini.model.state_dict().items()}
    names = [captions(scene)[0].text for scene in world]
    pictures = world.pictures()
    temperature = float(torch.exp(-mini.model.logit_scale.detach()))
    for arm, reduction in _arms().items():
        if arm in _UNTRAINED or (scenes < 100 and arm not in _SMOKE):
            continue
        mini.model.load_state_dict(start)
        task = InfoNCE(temperature)
        if reduction is not None:
            reduction.attach(mini.model)
        objective = task if reduction is None or not reduction.has_cross else CrossGuided(task, reduction, weight=0.1)
        model = dual_tower(_Side(mini.model, True), _Side(mini.model, False), device="cpu")
        report = train(model, pairs, objective, Stage(epochs=1, rate=2e-4), batch_size=64, seed=seed, device="cpu")
        mini.model.eval()
        vectors, texts = mini.encode_pictures(pictures, batch_size=64), mini.encode_texts(names)
        if reduction is not None:
            reduction.detach()
        yield Row.of(TUNED, arm, "R@1", _recall(vectors, texts, names), seconds=report.seconds)
    mini.model.load_state_dict(start)


CLAIM = Claim(
    statement="Merging tokens by a complete graph, guided by what the other modality needs, keeps more of a dual encoder's "
    "recall than ToMe at equal FLOPs.",
    run=run,
    gates=(
        Gate(TUNED, "CrossGET", "full", "R@1", "at least", -2.0),
        Gate(TUNED, "CrossGET", "ToMe", "R@1", "at least", 0.0),
        Gate(TUNED, "CrossGET", "ToMe, equal FLOPs", "R@1", "at least", 0.0),
        Gate(FREE, "CrossGET", "ToMe", "R@1", "at least", 0.0),
        Gate(FREE, "CrossGET", "ToMe, equal FLOPs", "R@1", "at least", 0.0),
        Gate(FREE, "ToMe", "random", "R@1", "gain", 5.0),
        Gate(FREE, "CrossGET", None, "share of FLOPs", "at most", 0.55),
        Gate(FREE, "CrossGET", None, "share of latency", "at most", 0.75),
        Gate(PAIRS, "CrossGET", "ToMe", "similarity of merged pairs", "gain", 0.0),
        Gate(NOISE, "CrossGET", "full", "R@1 of its own vector", "at most", -5.0, control=True),
        Gate(NOISE, "ToMe", "full", "R@1 of its own vector", "at most", -5.0, control=True),
        Gate(NOISE, "r = 0", None, "largest difference", "at most", 0.0, control=True),
    ),
    seeds=(0, 1, 2),
    cpu_seconds=480,
    note="ToMe merges the same number of tokens as CrossGET, which costs CrossGET a few percent more FLOPs for its cross token; "
    "'ToMe, equal FLOPs' merges four fewer. Where ToMe must merge nearly all tokens of one side, its recall breaks down. "
    "benchmarks/token_reduction.py holds the latency of a ViT-B.",
)
