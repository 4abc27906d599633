"""`XBT`: both stages on precomputed vectors, and the map that comes out of them (arXiv 2405.14715).

    stage 1   phi from texts alone, with noise            u = T_new(x), v = T_old(x), both models frozen
    stage 2   adapters a from picture-text pairs          without the old model: y = phi(T_new(t)) stands in for it
    then      z = norm phi(a(x))                          searches the old gallery

>>> xbt = XBT().fit_text(new_texts, old_texts)            # [T, Dn], [T, Do]
>>> xbt.fit_pairs(new_images, new_captions)               # [P, Dn] each
>>> queries = xbt.transform(new_queries, "text")          # [N, Do]: search the old gallery with them
>>> xbt.map.save("map.safetensors")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router

from chiasm.embeddings import check_finite, unit
from chiasm.errors import BadInput, unknown_name
from chiasm.learn.alignment.xbt.closed_form import procrustes
from chiasm.learn.alignment.xbt.mapping import SpaceMap
from chiasm.learn.alignment.xbt.modules import FORMS, Form, LowRank, Noise, Per, Projection, Same
from chiasm.learn.alignment.xbt.objectives import CompatibleObjective, TextLoss, TextObjective
from chiasm.learn.features import Features
from chiasm.learn.pairs import Pairs
from chiasm.learn.stages import Stage
from chiasm.learn.training import TrainReport, train

STARTS = ("random", "procrustes")
SIDES = ("image", "text")


class XBT:
    """A map from a new model's vectors into an old model's space, learned from texts and, optionally, pairs.

    Args:
        form: of the projection, see `Projection`; ``"mlp"`` (card).
        hidden: width of its MLP; default 4 max(Dn, Do).
        start: ``"random"``, or ``"procrustes"``: the linear part starts as the orthogonal map (not for ``"mlp"``).
        sigma: largest length of the noise on the new texts of stage 1; 1.0, as in the card's trial. More of it helps
            pictures as queries and costs texts as queries.
        noise_per: ``"sample"`` or ``"batch"``, see `Noise`.
        text_loss: of stage 1, see `TextObjective`.
        temperature: of both stages; 0.05 (card).
        rank: of the adapters of stage 2; 8 (card: 8 to 16).
        share_rate: rate of the projection in stage 2 as a share of the adapters'; 0 freezes it (card; its option is 0.1).
        seed: of weights, noise and order.

    Raises:
        UnknownName: a form, start or loss that does not exist.
        BadInput: ``start="procrustes"`` for an MLP, or a negative share.
    """

    def __init__(
        self,
        form: Form = "mlp",
        *,
        hidden: int | None = None,
        start: str = "random",
        sigma: float = 1.0,
        noise_per: Per = "sample",
        text_loss: TextLoss = "info_nce",
        temperature: float = 0.05,
        rank: int = 8,
        share_rate: float = 0.0,
        seed: int = 0,
    ) -> None:
        if form not in FORMS:
            raise unknown_name("form of projection", form, FORMS)
        if start not in STARTS:
            raise unknown_name("start", start, STARTS)
        if start == "procrustes" and form == "mlp":
            raise BadInput("an MLP has no linear part to start from", where="XBT", fix="Use form='residual'")
        if share_rate < 0:
            raise BadInput(f"share_rate {share_rate} is negative", where="XBT")
        self.form: Form = form
        self.hidden, self.start, self.rank = hidden, start, rank
        self.share_rate, self.seed = share_rate, seed
        self.noise = Noise(sigma, noise_per)
        self.text_objective = TextObjective(text_loss, temperature)
        self.pair_objective = CompatibleObjective(temperature)
        self.projection: Projection | None = None
        self.adapters: dict[str, LowRank] = {}
        self.reports: dict[str, TrainReport] = {}

    # ---- stage 1

    def fit_text(
        self,
        new: np.ndarray,
        old: np.ndarray,
        *,
        epochs: float = 10,
        steps: int | None = None,
        batch_size: int = 512,
        rate: float = 1e-3,
        progress: bool = False,
    ) -> XBT:
        """Stage 1: texts alone. Equal texts count once, because they would be false negatives.

        Args:
            new: ``[T, Dn]``, texts in the new model; old: ``[T, Do]``, the same in the old one.
            epochs, steps: how long; ``steps`` wins, and 0 keeps the start. Card: 10 to 50 epochs.
            batch_size: card: 4096 at full scale; never more than half of the texts.
            rate: of AdamW, falling to 0 along a cosine; 1e-3 (card).
            progress: show a bar.

        Raises:
            BadInput: shapes that do not fit, NaN, fewer than four distinct texts.
        """
        u, v = self._pair(new, old, "fit_text", "texts")
        _, first = np.unique(np.concatenate([u, v], axis=1), axis=0, return_index=True)
        u, v = u[np.sort(first)], v[np.sort(first)]
        if len(u) < 4:
            raise BadInput(f"{len(u)} distinct texts", where="XBT.fit_text", fix="Give many captions, 1,000 at least")
        torch.manual_seed(self.seed)
        self.adapters = {}
        self.projection = Projection(u.shape[1], v.shape[1], self.form, self.hidden)
        if self.start == "procrustes":
            self.projection.start_at(torch.from_numpy(procrustes(u, v)))
        if steps == 0:
            return self
        model = _model({"a": [self.noise, self.projection], "b": [Same(v.shape[1])]})
        pairs = Pairs({"a": _source(u), "b": _source(v)})
        stage = Stage("text", train=["*"], steps=steps, epochs=epochs, rate=rate)
        size = min(batch_size, len(u) // 2)
        self.reports["text"] = train(
            model, pairs, self.text_objective, stage, batch_size=size, seed=self.seed, log_every=50, progress=progress
        )
        return self

    # ---- stage 2

    def fit_pairs(
        self,
        images: np.ndarray,
        texts: np.ndarray,
        *,
        groups: np.ndarray | None = None,
        epochs: float = 20,
        steps: int | None = None,
        batch_size: int = 256,
        rate: float = 1e-3,
        progress: bool = False,
    ) -> XBT:
        """Stage 2: pictures and their texts, both in the new model. The old model is not needed.

        Args:
            images, texts: ``[P, Dn]``, row by row a pair.
            groups: int ``[P]``; pairs of one group (one picture with several captions) are no negatives of each other.
            epochs, steps: how long; ``steps`` wins.
            batch_size: card: 1024 and more; never more than half of the pairs.
            rate: of AdamW. The card's 1e-4 is for adapters inside the towers; for these few numbers on vectors 1e-3 was
                chosen on seed 1000 of real encoders, where 3e-3 spoiled the map (on the generated world 3e-3 is better).
            progress: show a bar.

        Raises:
            BadInput: before `fit_text`, shapes that do not fit, NaN, fewer than four pairs.
        """
        projection = self._fitted()
        i, t = self._pair(images, texts, "fit_pairs", "pairs")
        for side in (i, t):
            if side.shape[1] != projection.new:
                raise BadInput(f"vectors of length {side.shape[1]}, not {projection.new}", where="XBT.fit_pairs")
        if len(i) < 4:
            raise BadInput(f"{len(i)} pairs", where="XBT.fit_pairs", fix="Give a few hundred")
        torch.manual_seed(self.seed)
        self.adapters = {side: LowRank(projection.new, min(self.rank, projection.new)) for side in SIDES}
        # The target's projection is a copy that stays: it stands in for the old model.
        still = Projection(projection.new, projection.old, projection.form, projection.hidden)  # pyright: ignore
        still.load_state_dict(projection.state_dict())
        routes = {
            "a": [self.adapters["image"], projection],
            "b": [self.adapters["text"], projection],
            "target": [still],
        }
        model = _model(routes)
        learned = {id(p) for a in self.adapters.values() for p in a.parameters()}
        free = {id(p) for p in projection.parameters()} if self.share_rate else set()
        names = [name for name, p in model.named_parameters() if id(p) in learned | free]
        pairs = Pairs({"a": _source(i), "b": _source(t), "target": _source(t)}, groups=groups)
        stage = Stage("pairs", train=names, steps=steps, epochs=epochs, rate=rate)
        self.reports["pairs"] = train(
            model,
            pairs,
            self.pair_objective,
            stage,
            batch_size=min(batch_size, len(i) // 2),
            seed=self.seed,
            optimizer=_slower(free, self.share_rate) if free else None,
            log_every=50,
            progress=progress,
        )
        return self

    def _pair(self, one: Any, two: Any, where: str, what: str) -> tuple[np.ndarray, np.ndarray]:
        sides = [np.asarray(side, np.float32) for side in (one, two)]
        if any(side.ndim != 2 for side in sides) or len(sides[0]) != len(sides[1]):
            raise BadInput(f"shapes {sides[0].shape} and {sides[1].shape} are no {what}", where=f"XBT.{where}")
        for side in sides:
            check_finite(side, f"XBT.{where}")
        return unit(sides[0]), unit(sides[1])

    def _fitted(self) -> Projection:
        if self.projection is None:
            raise BadInput("has no projection yet", where="XBT", fix="Call fit_text first")
        return self.projection

    # ---- use

    @torch.no_grad()
    def transform(self, vectors: np.ndarray, modality: str = "text", *, adapted: bool = True) -> np.ndarray:
        """Vectors of the new model in the old space.

        Args:
            vectors: ``[N, Dn]``.
            modality: ``"text"``, ``"image"`` or another; decides the adapter.
            adapted: False leaves the adapters off: what stage 1 gave.

        Returns:
            float32 ``[N, Do]`` of unit length.

        Raises:
            BadInput: before `fit_text`, or vectors of another length.
        """
        return (self.map if adapted else self._map({}))(vectors, modality)

    @property
    def map(self) -> SpaceMap:
        """The map as plain arrays: what a store keeps."""
        return self._map(self.adapters)

    def _map(self, adapters: dict[str, LowRank]) -> SpaceMap:
        projection = self._fitted()
        arrays = {name: p.detach().cpu().numpy().copy() for name, p in projection.state_dict().items()}
        for side, adapter in adapters.items():
            for name, p in adapter.state_dict().items():
                arrays[f"adapter.{side}.{name}"] = p.detach().cpu().numpy().copy()
        facts = {"form": self.form, "sigma": self.noise.sigma, "seed": self.seed, "stages": list(self.reports)}
        return SpaceMap(arrays, projection.new, projection.old, facts=facts)


def _source(vectors: np.ndarray) -> Features:
    return Features({"sentence_embedding": vectors})


def _model(routes: dict[str, list[Any]]) -> SentenceTransformer:
    router = Router(routes, default_route="a", allow_empty_key=False)
    return SentenceTransformer(modules=[router], similarity_fn_name="cosine")


def _slower(parameters: set[int], share: float) -> Callable[[list[dict[str, Any]], float], torch.optim.Optimizer]:
    """AdamW with a smaller rate for some parameters."""

    def make(groups: list[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
        split = []
        for group in groups:
            for slow, factor in ((True, share), (False, 1.0)):
                chosen = [p for p in group["params"] if (id(p) in parameters) is slow]
                split.append({**group, "params": chosen, "lr": rate * factor})
        return torch.optim.AdamW([group for group in split if group["params"]], lr=rate)

    return make
