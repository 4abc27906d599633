"""Cross the Gap (Mistretta et al., ICLR 2025, arXiv 2502.04263): search inside one modality through the other one.

CLIP-like training compares pictures with texts and never pictures with pictures, so distances inside one modality are an
accident. Inversion finds, with the frozen model, an input of the *other* modality that has the query's meaning, and searches
with its feature:

    OTI  f [D] -> v [R, Wt]:  min_v 1 - cos(text("a photo of v"), f)      the query becomes  text("a photo of v*")
    OVI  g [D] -> w [R, Wv]:  min_w 1 - cos(image(w), g)                  the query becomes  image(w*)
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from chiasm.blocks.prompts import (
    dual_encoder,
    encode_patch_embeddings,
    encode_token_embeddings,
    first_module,
    frozen,
    token_embeddings,
)
from chiasm.correct.cross_the_gap.optimize import Optimized, invert
from chiasm.errors import BadInput
from chiasm.measure.vectors import as_rows, like, to_numpy

INIT_STD = 0.02  # of the paper: pseudo tokens start as N(0, 0.02^2)


@dataclass(frozen=True, slots=True)
class Inverted:
    """Inverted features of N items, arrays of the kind that was given.

    Args:
        features: float32 ``[N, D]`` of unit length; a zero row for a zero feature.
        pseudo: float32 ``[N, R, W]``, the pseudo words or patches.
        start: float32 ``[N]``, loss before the first step (1 - cosine, between 0 and 2).
        loss: float32 ``[N]``, loss at the end; what it keeps of the item is 1 minus this.
        steps: int64 ``[N]``, steps taken.
    """

    features: Any
    pseudo: Any
    start: Any
    loss: Any
    steps: Any


class Inversion:
    """What both directions share. Use `TextualInversion` or `VisualInversion`.

    The result for an item depends on its feature, the seed and nothing else: all items start from one draw of
    N(0, 0.02^2), and losses are summed, so that neither the batch nor the order matters (up to float32 rounding).
    """

    def __init__(
        self,
        model: Any,
        tokens: int,
        steps: int,
        lr: float,
        weight_decay: float,
        batch_size: int,
        early_stop: bool,
        seed: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        name = type(self).__name__
        for argument, value in (("tokens", tokens), ("batch_size", batch_size)):
            if value < 1:
                raise BadInput(f"{argument} {value} is not positive", where=name)
        network = dual_encoder(model)
        if any(p.dtype != torch.float32 for p in network.parameters()):
            network = copy.deepcopy(network).float()  # half precision has too few digits for small steps
        self.model = network
        self.tokens = tokens
        self.steps = steps
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.early_stop = early_stop
        self.seed = seed
        self.progress = progress

    def transform(self, features: Any) -> Any:
        """Features of the other modality that stand for these.

        Args:
            features: ``[N, D]``, of the model's own encoder, numpy or torch; normalized first.

        Returns:
            float32 ``[N, D]`` of unit length, of the kind and on the device of the input. Search with them among native
            features of the *original* modality.

        Raises:
            BadInput: another width than the model's, NaN or infinite values.
        """
        return self.invert(features).features

    def invert(self, features: Any) -> Inverted:
        """As `transform`, with pseudo tokens, losses and steps."""
        with torch.inference_mode(False):
            rows = as_rows(features, "features")
            device = next(self.model.parameters()).device
            targets = torch.tensor(to_numpy(rows), device=device)
            with frozen(self.model):
                return self._collect(targets, features)

    def fit(self, features: Any, inverted: Inverted | None = None) -> Inversion:
        """Warm start: later inversions begin where a ridge regression on earlier ones expects the pseudo tokens.

        Args:
            features: ``[N, D]`` of earlier items, some hundreds.
            inverted: their inversions, if they were made already.

        Raises:
            BadInput: fewer than two rows, or inversions that do not belong to them.
        """
        from sklearn.linear_model import RidgeCV

        done = self.invert(features) if inverted is None else inverted
        rows, pseudo = to_numpy(as_rows(features, "features")), to_numpy(done.pseudo)
        if len(rows) < 2 or pseudo.shape[:2] != (len(rows), self.tokens):
            raise BadInput(
                f"{len(rows)} features and pseudo tokens {pseudo.shape}",
                where=f"{type(self).__name__}.fit",
                fix="Give at least two features and their own inversions",
            )
        # The strength is chosen by leave-one-out; most of the variance between inversions is chance.
        self.ridge_ = RidgeCV(np.logspace(-3, 3, 13)).fit(rows, pseudo.reshape(len(rows), -1))
        return self

    def _width(self) -> int:
        """Width of a pseudo token."""
        raise TypeError(f"{type(self).__name__} does not define _width")

    def _encode(self, pseudo: Tensor) -> Tensor:
        """Features ``[b, D]`` of pseudo tokens ``[b, R, W]``."""
        raise TypeError(f"{type(self).__name__} does not define _encode")

    def _start(self, targets: Tensor) -> Tensor:
        shape = len(targets), self.tokens, self._width()
        if hasattr(self, "ridge_"):
            guess = self.ridge_.predict(targets.cpu().numpy()).reshape(shape)
            return torch.tensor(guess, dtype=torch.float32, device=targets.device)
        # Drawn on the CPU, so that the device does not change it.
        draw = torch.randn(shape[1:], generator=torch.Generator().manual_seed(self.seed)) * INIT_STD
        return draw.to(targets.device).expand(shape)

    def _collect(self, targets: Tensor, example: Any) -> Inverted:
        """Inverts batch by batch; zero rows, which point nowhere, stay zero."""
        total, done = len(targets) * self.steps, 0
        somewhere = (targets.norm(dim=1) > 0).nonzero()[:, 0]
        n, r, w = len(targets), self.tokens, self._width()
        features, pseudo = torch.zeros_like(targets), targets.new_zeros(n, r, w)
        start, loss = targets.new_ones(n), targets.new_ones(n)
        steps = torch.zeros(n, dtype=torch.int64, device=targets.device)
        for part in somewhere.split(self.batch_size) if len(somewhere) else ():
            goal = targets[part]

            def report(size: int = len(part)) -> None:
                nonlocal done
                done += size
                if self.progress:
                    self.progress(done, total)

            found: Optimized = invert(
                self._encode,
                goal,
                self._start(goal),
                steps=self.steps,
                lr=self.lr,
                weight_decay=self.weight_decay,
                early_stop=self.early_stop,
                on_step=report,
            )
            features[part], pseudo[part], start[part], loss[part], steps[part] = (
                found.features,
                found.inputs,
                found.start,
                found.loss,
                found.steps,
            )
        example = example if hasattr(example, "shape") else np.empty(0)
        return Inverted(*(like(x.cpu().numpy(), example) for x in (features, pseudo, start, loss, steps)))


class TextualInversion(Inversion):
    """OTI: image features become text features. Search pictures by picture with them.

        oti = TextualInversion(model, tokenizer)          # or TextualInversion(chiasm.load("openai/clip-vit-base-patch32"))
        queries = oti.transform(image_features)           # [N, D] -> [N, D]
        scores = queries @ gallery_image_features.T

    Args:
        model: `transformers.CLIPModel` or `SiglipModel`, a `SentenceTransformer` over one, or a space. It is not changed;
            a model in half precision is copied to float32.
        tokenizer: its tokenizer; may be left out for a space or a `SentenceTransformer`, which bring theirs.
        template: a sentence with one ``{}``; the paper's "a photo of {}".
        tokens: R, pseudo words in place of ``{}``; 1 in the paper.
        steps, lr, weight_decay, batch_size: 150, 2e-2, 0.01 and 64 in the paper.
        early_stop: stop an item when its loss improved by less than 1e-4 over 10 steps; the paper does not.
        seed: of the start.
        progress: called with (item steps done, item steps in all).

    Raises:
        UnknownName: an architecture that is not supported.
        BadInput: a template without ``{}``, no tokenizer, or more tokens than the model can read.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        template: str = "a photo of {}",
        tokens: int = 1,
        steps: int = 150,
        lr: float = 2e-2,
        weight_decay: float = 0.01,
        batch_size: int = 64,
        early_stop: bool = False,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__(model, tokens, steps, lr, weight_decay, batch_size, early_stop, seed, progress)
        if tokenizer is None:
            tokenizer = getattr(getattr(first_module(model), "processor", None), "tokenizer", None)
        if tokenizer is None:
            raise BadInput("no tokenizer", where="TextualInversion", fix="Give the tokenizer of the model")
        self.template = template
        ids, self.place = placeholder_ids(self.model, tokenizer, template, tokens)
        self.input_ids = torch.tensor([ids])

    def _width(self) -> int:
        return self.model.text_model.embeddings.token_embedding.embedding_dim

    def _encode(self, pseudo: Tensor) -> Tensor:
        ids = self.input_ids.to(pseudo.device)
        words = token_embeddings(self.model, ids).expand(len(pseudo), -1, -1)
        before, after = words[:, : self.place], words[:, self.place + self.tokens :]
        return encode_token_embeddings(self.model, torch.cat([before, pseudo, after], dim=1), ids)


class VisualInversion(Inversion):
    """OVI: text features become image features. Search texts by text with them.

        queries = VisualInversion(model).transform(text_features)          # [N, D] -> [N, D]

    Args:
        model: as in `TextualInversion`.
        tokens: R, pseudo patches; each fills a run of P / R of the P patches. None takes the paper's value for the backbone,
            see `paper_tokens`.
        steps, lr, weight_decay, batch_size: 1000, 2e-2, 0.01 and 64 in the paper.
        early_stop, seed, progress: as in `TextualInversion`.

    Raises:
        UnknownName: an architecture that is not supported.
        BadInput: more tokens than patches.
    """

    def __init__(
        self,
        model: Any,
        *,
        tokens: int | None = None,
        steps: int = 1000,
        lr: float = 2e-2,
        weight_decay: float = 0.01,
        batch_size: int = 64,
        early_stop: bool = False,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        network = dual_encoder(model)
        patches = network.vision_model.embeddings.num_patches
        tokens = min(paper_tokens(network.config), patches) if tokens is None else tokens
        super().__init__(model, tokens, steps, lr, weight_decay, batch_size, early_stop, seed, progress)
        if tokens > patches:
            raise BadInput(f"{tokens} tokens for {patches} patches", where="VisualInversion")

    def _width(self) -> int:
        return self.model.vision_model.embeddings.patch_embedding.out_channels

    def _encode(self, pseudo: Tensor) -> Tensor:
        return encode_patch_embeddings(self.model, spread(pseudo, self.model.vision_model.embeddings.num_patches))


def spread(pseudo: Tensor, patches: int) -> Tensor:
    """``[B, R, W]`` -> ``[B, P, W]``: every vector fills a contiguous run of positions (nearest neighbor along the tokens)."""
    return interpolate(pseudo.transpose(1, 2), size=patches, mode="nearest").transpose(1, 2)


def paper_tokens(config: Any) -> int:
    """R of the paper's visual inversion: SigLIP B/16 4, OpenAI CLIP L/14 4, OpenCLIP L/14 2, every base CLIP 1."""
    if config.model_type == "siglip":
        return 4
    if config.vision_config.hidden_size < 1024:
        return 1
    # Of the two large models only OpenAI's was trained with the quick approximation of GELU.
    return 4 if config.vision_config.hidden_act == "quick_gelu" else 2


def placeholder_ids(model: Any, tokenizer: Any, template: str, tokens: int) -> tuple[list[int], int]:
    """Token ids of the template with ``tokens`` placeholders in a row, and the position of the first.

    The sentence is cut at ``{}`` and put together from ids, so the placeholder needs no sign of its own in the vocabulary. Its
    id is that of an ordinary word: old CLIP checkpoints take the largest id of a sentence for its end.

    Raises:
        BadInput: not one ``{}`` in the template, or too many tokens for the model.
    """
    if template.count("{}") != 1:
        raise BadInput(f"template {template!r} needs one {{}}", where="TextualInversion")
    before, after = (
        tokenizer(part.strip(), add_special_tokens=False)["input_ids"] if part.strip() else []
        for part in template.split("{}")
    )
    # Where a tokenizer puts its special tokens is seen on a word that certainly has ids.
    word = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    at = next(i for i in range(len(whole)) if whole[i : i + len(word)] == word)
    head, tail = whole[:at], whole[at + len(word) :]
    ids = [*head, *before, *([word[0]] * tokens), *after, *tail]
    longest = model.config.text_config.max_position_embeddings
    if len(ids) > longest:
        raise BadInput(
            f"{len(ids)} tokens, the model reads {longest}", where="TextualInversion", fix="Shorten the template"
        )
    if model.config.model_type == "siglip":
        # SigLIP was trained on sentences padded to full length, and reads its feature from the last position.
        pad = tokenizer.pad_token_id
        ids += [pad if pad is not None else model.config.text_config.pad_token_id] * (longest - len(ids))
    return ids, len(head) + len(before)
