"""A mini vision-language model: a real but tiny LLaVA of transformers that answers questions about scenes; trained once, cached.

    >>> mini = mini_llava()                              # trains for 100 s of CPU time (its eyes for 65), afterwards it loads
    >>> inputs = mini.inputs(pictures, questions)        # pixels, ids and mask of prompts, padded on the left
    >>> mini.answers(inputs)                             # one word each

Its eyes are the vision tower of `mini_clip`, frozen. As in LLaVA the projector is trained first (each image token learns to
say the words of the object that it shows), then projector and Llama, on several questions a picture in a row, so that later
questions are asked behind several turns of text. For claims about generative models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chiasm.errors import BadInput
from chiasm.worlds.cached import made_once
from chiasm.worlds.language import known_words
from chiasm.worlds.mini import MiniSettings
from chiasm.worlds.questions import Question
from chiasm.worlds.scenes import VERSION as SCENES_VERSION
from chiasm.worlds.scenes import Scene, SceneWorld, make_scenes

if TYPE_CHECKING:
    import torch

VERSION = 2
SPECIAL = ("<pad>", "<start>", "<unknown>", "<end>", "<image>")
_ASKING = "is there something a what color shape the one yes no ?"


@dataclass(frozen=True, slots=True)
class MiniLlavaSettings:
    """How the mini vision-language model is built and trained; every field is part of the cache key.

    Args:
        width, layers, heads, inner: the Llama.
        theta: base of its rotary positions; large, so that words find their patches at any distance.
        scenes: training scenes (seed ``4_000_000 + seed``), of ``objects`` large plain things each.
        colors, shapes: what occurs in them.
        asked: questions a picture and step, drawn anew each time.
        kinds: ``"there"`` (is there something red? is there a star?) and ``"of"`` (what color is the star? what shape is the
            red one?); where things are is not asked, since the eyes hardly tell it.
        align, align_batch, align_rate: steps of the projector alone.
        steps, batch, rate, warmup: AdamW with a linear warm-up (share of the steps) and a cosine to zero.
        eyes: settings of the vision tower.
    """

    width: int = 64
    layers: int = 4
    heads: int = 4
    inner: int = 128
    theta: float = 1e6
    scenes: int = 4096
    objects: tuple[int, int] = (2, 4)
    colors: tuple[str, ...] = ("red", "green", "blue", "yellow")
    shapes: tuple[str, ...] = ("circle", "square", "star", "cross")
    asked: int = 8
    kinds: tuple[str, ...] = ("there", "of")
    align: int = 600
    align_batch: int = 64
    align_rate: float = 3e-3
    steps: int = 800
    batch: int = 16
    rate: float = 2e-3
    warmup: float = 0.05
    eyes: MiniSettings = field(default_factory=MiniSettings)

    def world(self, n: int, seed: int, **changes: Any) -> SceneWorld:
        """Scenes like those of the training; ``changes`` are settings of `make_scenes`."""
        usual = {"objects": self.objects, "colors": self.colors, "shapes": self.shapes, "sizes": ("large",)}
        usual |= {"textures": ("plain",), "stacks": 0.0, "grid": self.eyes.grid, "jitter": self.eyes.jitter}
        return make_scenes(n, seed=seed, **usual | changes)

    def questions(self, world: SceneWorld) -> list[list[Question]]:
        """The questions about each scene."""
        made = (simple_questions(scene, self.colors, self.shapes) for scene in world)
        return [[question for question in known if question.kind in self.kinds] for known in made]


@dataclass(frozen=True)
class MiniLlava:
    """A trained mini vision-language model.

    Args:
        model: `transformers.LlavaForConditionalGeneration` in eval mode.
        words: word -> id.
        report: how it was made, and its accuracy by kind on scenes it was not trained on.
    """

    model: Any
    words: dict[str, int]
    report: dict[str, Any]

    @property
    def image_id(self) -> int:
        """Id of the placeholder of an image token."""
        return self.words["<image>"]

    @property
    def patches(self) -> int:
        """Image tokens of a picture."""
        side = self.model.config.vision_config
        return (side.image_size // side.patch_size) ** 2

    def pixels(self, pictures: np.ndarray) -> torch.Tensor:
        """uint8 ``[N, 64, 64, 3]`` -> float32 ``[N, 3, 64, 64]`` in [-1, 1]."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))).float().div_(127.5).sub_(1)

    def ids(self, text: str) -> list[int]:
        """Word ids of a text; a question mark is a word."""
        unknown = self.words["<unknown>"]
        return [self.words.get(word, unknown) for word in text.lower().replace("?", " ?").replace(",", " ").split()]

    def inputs(self, pictures: np.ndarray, texts: Sequence[str]) -> dict[str, Any]:
        """Prompts of one picture and one text each: ``pixel_values``, ``input_ids`` and ``attention_mask``, padded on the left.

        Raises:
            BadInput: nothing, or not one text a picture.
        """
        import torch

        if not len(texts) or len(pictures) != len(texts):
            raise BadInput(
                f"{len(pictures)} pictures and {len(texts)} texts", where="MiniLlava", fix="Give one a picture"
            )
        rows = [[self.words["<start>"], *[self.image_id] * self.patches, *self.ids(text)] for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        return {"pixel_values": self.pixels(pictures), "input_ids": ids, "attention_mask": (ids != 0).long()}

    def answers(self, inputs: dict[str, Any]) -> list[str]:
        """The most probable next word of each prompt."""
        import torch

        # Position ids by the mask, as `generate` makes them: padding in front moves nothing.
        place = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
        with torch.inference_mode():
            best = self.model(**inputs, position_ids=place, logits_to_keep=1).logits[:, -1].argmax(dim=-1)
        names = {number: word for word, number in self.words.items()}
        return [names[int(i)] for i in best]

    def save(self, folder: str | Path) -> None:
        """Writes config, safetensors, words and report."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder)
        (folder / "words.json").write_text(json.dumps(self.words, ensure_ascii=False))
        (folder / "report.json").write_text(json.dumps(self.report, indent=2))


def mini_llava(
    *,
    seed: int = 0,
    settings: MiniLlavaSettings | None = None,
    cache: str | Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> MiniLlava:
    """The mini vision-language model of a seed: from the cache, or trained now and cached.

    Args:
        seed: seed of the weights, the training scenes and their order; also of the eyes.
        settings: size and training.
        cache: folder; by default as `mini_clip`'s.
        progress: called with the share of the training that is done.
    """
    settings = settings or MiniLlavaSettings()
    key = [VERSION, SCENES_VERSION, seed, asdict(settings)]

    def make() -> MiniLlava:
        from chiasm.worlds.mini_llava_training import train

        return train(settings, seed, cache, progress)

    return load(made_once("llava", key, make, cache))


def load(folder: str | Path) -> MiniLlava:
    """Reads what `MiniLlava.save` wrote.

    Raises:
        BadInput: the folder holds no mini vision-language model.
    """
    from transformers import LlavaForConditionalGeneration

    folder = Path(folder)
    if not (folder / "report.json").exists():
        raise BadInput("no mini vision-language model here", where=str(folder), fix="Make one with `mini_llava()`")
    model = LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa", use_safetensors=True)
    words = json.loads((folder / "words.json").read_text())
    return MiniLlava(model.eval(), words, json.loads((folder / "report.json").read_text()))


def simple_questions(scene: Scene, colors: Sequence[str], shapes: Sequence[str]) -> list[Question]:
    """Questions with one step of reasoning, in an order that depends on the scene alone.

    ``"there"``: about a color that occurs and one that does not, and likewise two shapes; ``"of"``: the color of every shape
    and the shape of every color that occurs once.

    Args:
        scene: what is asked about.
        colors, shapes: what could occur.
    """
    rng = np.random.Generator(np.random.PCG64([scene.seed, scene.index, 5]))
    made = []
    for name, values, text in (("color", colors, "is there something {}?"), ("shape", shapes, "is there a {}?")):
        found = {getattr(thing, name) for thing in scene.objects}
        for group, answer in ((sorted(found), "yes"), (sorted(set(values) - found), "no")):
            if group:
                value = group[int(rng.integers(len(group)))]
                made.append(Question(text.format(value), answer, "there", (name, value)))
    for known, wanted, text in (
        ("shape", "color", "what color is the {}?"),
        ("color", "shape", "what shape is the {} one?"),
    ):
        values = [getattr(thing, known) for thing in scene.objects]
        for value, thing in zip(values, scene.objects):
            if values.count(value) == 1:
                made.append(Question(text.format(value), getattr(thing, wanted), "of", (known, value)))
    return [made[int(i)] for i in rng.permutation(len(made))]


def shown(world: SceneWorld, side: int = 8, share: float = 0.25) -> np.ndarray:
    """The number of the object that each patch shows, int64 ``[N, side * side]``; -1 where objects cover less than a share."""
    labels = world.draw().labels
    size = labels.shape[1] // side
    cells = (
        labels.reshape(len(labels), side, size, side, size).transpose(0, 1, 3, 2, 4).reshape(-1, side * side, size**2)
    )
    return np.where((cells > 0).mean(axis=2) >= share, cells.max(axis=2).astype(np.int64) - 1, -1)


def vocabulary() -> dict[str, int]:
    """Every word of questions and answers about scenes in English, with its id."""
    listed = [*SPECIAL, *_ASKING.split(), *known_words("en")]
    return {word: at for at, word in enumerate(dict.fromkeys(listed))}


def untrained(settings: MiniLlavaSettings, seed: int, vision: Any = None) -> MiniLlava:
    """The model before training; ``vision`` is a CLIP vision model whose weights become its eyes (default: random ones)."""
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    words, eyes = vocabulary(), settings.eyes
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": eyes.vision_width,
            "intermediate_size": eyes.vision_mlp,
            "num_hidden_layers": eyes.vision_layers,
            "num_attention_heads": vision.config.num_attention_heads if vision is not None else 4,
            "image_size": 64,
            "patch_size": eyes.patch,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(words),
            "hidden_size": settings.width,
            "intermediate_size": settings.inner,
            "num_hidden_layers": settings.layers,
            "num_attention_heads": settings.heads,
            "num_key_value_heads": settings.heads,
            "max_position_embeddings": 256,
            "rope_parameters": {"rope_type": "default", "rope_theta": settings.theta},
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 3,
        },
        image_token_id=words["<image>"],  # pyright: ignore[reportCallIssue] (a field of the config's base)
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
        _mimetic(model)
    model.set_attn_implementation("sdpa")
    if vision is not None:
        model.model.vision_tower.load_state_dict(vision.state_dict())
    return MiniLlava(model.eval(), words, {})


def _mimetic(model: Any, scale: float = 0.1) -> None:
    """Weights at which attention already finds what is alike and copies it (mimetic initialization, arXiv 2305.09828).

    Queries begin equal to keys, the output projection as the transposed values, the head as the words; from the usual
    weights a model this small stays at guessing for most of its training.
    """
    import torch

    language = model.model.language_model
    with torch.no_grad():
        for weight in language.parameters():
            if weight.ndim > 1:
                weight.normal_(std=scale)
        for layer in language.layers:
            attention = layer.self_attn
            attention.q_proj.weight.mul_(1.4)
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            attention.o_proj.weight.copy_(attention.v_proj.weight.T)
            layer.mlp.down_proj.weight.div_((2 * len(language.layers)) ** 0.5)
        model.lm_head.weight.copy_(0.5 * language.embed_tokens.weight)


def evaluate(mini: MiniLlava, settings: MiniLlavaSettings, *, n: int = 200, seed: int = 5_000_000) -> dict[str, float]:
    """Accuracy by kind of question on scenes it was not trained on, each question alone behind its picture."""
    world = settings.world(n, seed)
    pictures, asked = world.pictures(), settings.questions(world)
    right: dict[str, list[bool]] = {kind: [] for kind in settings.kinds}
    flat = [(row, question) for row, known in enumerate(asked) for question in known]
    for at in range(0, len(flat), 128):
        part = flat[at : at + 128]
        given = mini.answers(mini.inputs(pictures[[row for row, _ in part]], [question.text for _, question in part]))
        for (_, question), answer in zip(part, given):
            right[question.kind].append(answer == question.answer)
    return {kind: round(float(np.mean(hits)), 4) if hits else 0.0 for kind, hits in right.items()}
