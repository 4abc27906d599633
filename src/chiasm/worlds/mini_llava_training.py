"""How `chiasm.worlds.mini_llava` is trained: its projector learns words first, then projector and language model the answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chiasm.worlds.mini import mini_clip
from chiasm.worlds.mini_llava import VERSION, MiniLlava, MiniLlavaSettings, evaluate, shown, untrained
from chiasm.worlds.questions import Question
from chiasm.worlds.scenes import SceneWorld

if TYPE_CHECKING:
    import torch


def _align(
    mini: MiniLlava, settings: MiniLlavaSettings, world: SceneWorld, seen: torch.Tensor, rng: np.random.Generator
) -> float:
    """Trains the projector to say the color and the shape that a patch shows, and ``<image>`` on the ground.

    Args:
        mini: the model.
        settings: its settings.
        world: scenes of the training.
        seen: what the projector reads of them, ``[N, M, W]``.
        rng: order of the scenes.

    Returns:
        The share of the words' variance that is left.
    """
    import torch

    projector, words = mini.model.model.multi_modal_projector, mini.model.get_input_embeddings().weight.detach()
    with torch.no_grad():
        # The first layer begins with standardized features, since those of the tower have a large common part.
        spread, first = seen.std(dim=(0, 1)).clamp_min(1e-6), projector.linear_1
        first.weight.normal_(std=seen.shape[2] ** -0.5).div_(spread)
        first.bias.copy_(-first.weight @ seen.mean(dim=(0, 1)))
        projector.linear_2.weight.normal_(std=0.17 * first.out_features**-0.5)
        projector.linear_2.bias.zero_()
    names = [[mini.words["<image>"], mini.words["<pad>"]]]
    number = shown(world)
    rows = np.zeros_like(number)
    for at, scene in enumerate(world):
        there = number[at] >= 0
        rows[at, there] = len(names) + number[at, there]
        names += [[mini.words[thing.color], mini.words[thing.shape]] for thing in scene.objects]
    pairs, index = torch.tensor(names), torch.from_numpy(rows)
    optimizer = torch.optim.Adam(projector.parameters(), settings.align_rate)
    left = 1.0
    for _ in range(settings.align):
        part = torch.from_numpy(rng.integers(0, len(seen), settings.align_batch))
        said = words[pairs[index[part]]]
        wanted = said[..., 0, :] + said[..., 1, :] * (pairs[index[part]][..., 1] != 0)[..., None]
        loss = (projector(seen[part]) - wanted).square().sum() / wanted.square().sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        left = float(loss.detach())
    return left


def train(
    settings: MiniLlavaSettings,
    seed: int = 0,
    cache: str | Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> MiniLlava:
    """Trains the projector, then projector and language model on the answers; the eyes stay as they are."""
    import torch

    started, cpu = time.perf_counter(), time.process_time()
    eyes = mini_clip(seed=seed, settings=settings.eyes, cache=cache)
    mini = untrained(settings, seed, eyes.model.vision_model)
    model, rng = mini.model, np.random.Generator(np.random.PCG64(seed))
    world = settings.world(settings.scenes, 4_000_000 + seed)
    asked = settings.questions(world)
    model.model.vision_tower.requires_grad_(False)
    with torch.no_grad():
        seen = torch.cat(
            [_see(model, mini.pixels(world.pictures(slice(at, at + 256)))) for at in range(0, len(world), 256)]
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        left = _align(mini, settings, world, seen, rng)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, settings.rate, betas=(0.9, 0.98))
    warm = max(1, round(settings.warmup * settings.steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm, 0.5 * (1 + float(np.cos(np.pi * min(1, step / max(1, settings.steps)))))),
    )
    losses = []
    order = np.empty(0, dtype=np.int64)
    for step in range(settings.steps):
        if len(order) < settings.batch:
            order = rng.permutation([i for i, known in enumerate(asked) if known])
        rows, order = order[: settings.batch], order[settings.batch :]
        ids, labels = _conversation(mini, [asked[row] for row in rows], settings.asked, rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())):
            loss = _loss(model, seen[torch.from_numpy(rows)], ids, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if progress is not None:
            progress((step + 1) / settings.steps)
    model.eval().requires_grad_(True)
    every = max(1, settings.steps // 10)
    report = {
        "version": VERSION,
        "seed": seed,
        "settings": asdict(settings),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "alignment": round(left, 4),
        "loss": [round(float(np.mean(losses[at : at + every])), 4) for at in range(0, len(losses), every)],
    }
    return MiniLlava(model, mini.words, report | {"accuracy": evaluate(mini, settings)})


def _see(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """What the projector reads: float32 ``[N, M, W]``."""
    seen = model.model.vision_tower(pixels, output_hidden_states=True)
    return seen.hidden_states[model.config.vision_feature_layer][:, 1:]


def _conversation(
    mini: MiniLlava, asked: Sequence[Sequence[Question]], count: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels ``[B, L]`` of some questions and answers a picture; only answers have labels."""
    import torch

    texts, wanted = [], []
    for known in asked:
        said: list[int] = []
        labels: list[int] = []
        for at in rng.choice(len(known), size=count, replace=len(known) < count):
            words, answer = mini.ids(known[at].text), mini.words.get(known[at].answer, 2)
            said += [*words, answer]
            labels += [*[-100] * len(words), answer]
        texts.append(said)
        wanted.append(labels)
    longest = max(map(len, texts))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in texts])
    return ids, torch.tensor([row + [-100] * (longest - len(row)) for row in wanted])


def _loss(model: Any, seen: torch.Tensor, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the answers behind pictures ``seen`` ``[B, M, W]``."""
    import torch
    from torch.nn import functional

    embed = model.get_input_embeddings()
    start = embed(torch.ones(len(ids), 1, dtype=torch.long))
    inside = model.model.multi_modal_projector(seen)
    states = torch.cat([start, inside.to(start.dtype), embed(ids)], dim=1)
    hidden = model.model.language_model(inputs_embeds=states, use_cache=False).last_hidden_state
    # The state before an answer says the answer.
    behind = hidden[:, inside.shape[1] : -1]
    chosen = labels != -100
    return functional.cross_entropy(model.lm_head(behind[chosen]).float(), labels[chosen])
