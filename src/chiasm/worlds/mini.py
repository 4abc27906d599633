"""A mini dual encoder: a real but tiny `transformers.CLIPModel`, trained once on scenes with plain InfoNCE and cached.

Claims of methods that attach to Hugging Face towers (prompts, token reduction, inversion) run on it without a model hub:

    >>> mini = mini_clip()                              # trains in about 70 s of CPU time, afterwards it loads
    >>> mini.encode_pictures(world.pictures())          # float32 [N, 64], unit length
    >>> mini.encode_texts(["a red circle"])
    >>> mini.model                                      # transformers.CLIPModel, with its tokenizer in mini.tokenizer
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chiasm.errors import BadInput
from chiasm.worlds import captions as sentences
from chiasm.worlds.cached import made_once
from chiasm.worlds.scenes import VERSION as SCENES_VERSION
from chiasm.worlds.scenes import SceneWorld, make_scenes
from chiasm.worlds.vocabulary import COLORS, SHAPES

if TYPE_CHECKING:
    import torch
    from transformers import CLIPModel, PreTrainedTokenizerFast

VERSION = 1


@dataclass(frozen=True, slots=True)
class MiniSettings:
    """How the mini dual encoder is built and trained; every field is part of the cache key.

    Args:
        vision_width, vision_layers, vision_mlp, patch: the vision transformer on 64-pixel pictures.
        text_width, text_layers, text_mlp: the text transformer over words.
        dim: length of a vector.
        grid, jitter: raster of the scenes; 4 without jitter puts every object on 2 x 2 patches of 8 pixels.
        scenes: number of training scenes of up to three objects (seed ``1_000_000 + seed``).
        single: number of scenes of one object, on which the first ``single_epochs`` epochs train: attributes first.
        epochs, batch, rate, decay, warmup: AdamW with a linear warm-up (share of the steps) and a cosine to zero.
        languages: languages of the captions; each training pair draws one caption per epoch.
        split: ``"train"`` keeps the held-out pairs of color and shape unseen, ``"all"`` shows them.
    """

    vision_width: int = 96
    vision_layers: int = 4
    vision_mlp: int = 192
    patch: int = 8
    text_width: int = 64
    text_layers: int = 2
    text_mlp: int = 128
    dim: int = 64
    grid: int = 4
    jitter: float = 0.0
    scenes: int = 8192
    single: int = 4096
    single_epochs: int = 3
    epochs: int = 4
    batch: int = 64
    rate: float = 1e-3
    decay: float = 0.05
    warmup: float = 0.1
    languages: tuple[str, ...] = ("en",)
    split: str = "train"


@dataclass(frozen=True)
class MiniClip:
    """A trained mini dual encoder.

    Args:
        model: `transformers.CLIPModel` in eval mode.
        tokenizer: word-level fast tokenizer with padding to the right.
        report: how it was made and how good it is on held-out scenes.
    """

    model: Any
    tokenizer: PreTrainedTokenizerFast
    report: dict[str, Any]

    def pixels(self, pictures: np.ndarray) -> torch.Tensor:
        """uint8 ``[N, 64, 64, 3]`` -> float32 ``[N, 3, 64, 64]`` in [-1, 1]."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))).float().div_(127.5).sub_(1)

    def tokens(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """``input_ids`` and ``attention_mask`` ``[N, L]`` of texts, padded to the longest."""
        length = self.model.config.text_config.max_position_embeddings
        return dict(self.tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt"))

    def encode_pictures(self, pictures: np.ndarray, *, batch_size: int = 256) -> np.ndarray:
        """Unit vectors float32 ``[N, D]`` of pictures uint8 ``[N, 64, 64, 3]``."""
        return self._encode(
            lambda part: self.model.get_image_features(pixel_values=self.pixels(part)), pictures, batch_size
        )

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 1024) -> np.ndarray:
        """Unit vectors float32 ``[N, D]`` of texts."""
        return self._encode(lambda part: self.model.get_text_features(**self.tokens(part)), texts, batch_size)

    def _encode(self, features: Callable[[Any], Any], things: Any, batch_size: int) -> np.ndarray:
        import torch

        with torch.inference_mode():
            parts = [_unit(features(things[start : start + batch_size])) for start in range(0, len(things), batch_size)]
        return torch.cat(parts).numpy() if parts else np.zeros((0, self.model.config.projection_dim), dtype=np.float32)

    def save(self, folder: str | Path) -> None:
        """Writes a folder that `transformers` and `chiasm.load` read: config, safetensors, tokenizer, preprocessing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        side = self.model.config.vision_config.image_size
        preprocessing = {
            "image_processor_type": "CLIPImageProcessor",
            "processor_class": "CLIPProcessor",
            "do_resize": True,
            "size": {"shortest_edge": side},
            "do_center_crop": True,
            "crop_size": {"height": side, "width": side},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "do_convert_rgb": True,
            "resample": 3,
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2))
        (folder / "report.json").write_text(json.dumps(self.report, indent=2))


def mini_clip(
    *,
    seed: int = 0,
    settings: MiniSettings | None = None,
    cache: str | Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> MiniClip:
    """The mini dual encoder of a seed: from the cache, or trained now and cached.

    Args:
        seed: seed of the weights, the training scenes and their order.
        settings: size and training; the default takes about 70 s of CPU time.
        cache: folder; default ``$CHIASM_CACHE``, or the user's cache folder of this platform.
        progress: called with the share of the training that is done.
    """
    settings = settings or MiniSettings()
    key = [VERSION, SCENES_VERSION, seed, asdict(settings)]
    return load(made_once("mini", key, lambda: train(settings, seed, progress), cache))


def load(folder: str | Path) -> MiniClip:
    """Reads what `MiniClip.save` wrote.

    Raises:
        BadInput: the folder holds no mini dual encoder.
    """
    from transformers import CLIPModel, PreTrainedTokenizerFast

    folder = Path(folder)
    if not (folder / "report.json").exists():
        raise BadInput("no mini dual encoder here", where=str(folder), fix="Make one with chiasm.worlds.mini_clip()")
    model = CLIPModel.from_pretrained(folder, attn_implementation="sdpa", use_safetensors=True).eval()
    return MiniClip(
        model, PreTrainedTokenizerFast.from_pretrained(folder), json.loads((folder / "report.json").read_text())
    )


def train(settings: MiniSettings, seed: int = 0, progress: Callable[[float], None] | None = None) -> MiniClip:
    """Trains a mini dual encoder with symmetric InfoNCE (learned temperature) on pairs of picture and caption."""
    import torch

    started, cpu = time.perf_counter(), time.process_time()
    rng = np.random.Generator(np.random.PCG64(seed))
    common = {"split": settings.split, "grid": settings.grid, "jitter": settings.jitter}
    stages = [
        (make_scenes(settings.single, seed=3_000_000 + seed, objects=(1, 1), **common), settings.single_epochs),
        (make_scenes(settings.scenes, seed=1_000_000 + seed, objects=(1, 3), **common), settings.epochs),
    ]
    stages = [(world, epochs) for world, epochs in stages if epochs and len(world) >= settings.batch]
    if not stages:
        raise BadInput(
            "nothing to train on", where="mini.train", fix="Take at least one epoch and as many scenes as a batch holds"
        )
    tokenizer = word_tokenizer(settings.languages)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mini = MiniClip(_untrained(settings, tokenizer), tokenizer, {})
        losses = _fit(mini, settings, stages, rng, progress)
    mini.model.eval()
    parameters = sum(p.numel() for p in mini.model.parameters())
    times = {"seconds": round(time.perf_counter() - started, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    made = {
        "version": VERSION,
        "seed": seed,
        "settings": asdict(settings),
        "parameters": parameters,
        **times,
        "loss": losses,
    }
    splits = {"held_out": "train", "unseen_pairs": "unseen"}
    quality = {name: evaluate(mini, settings, split=split) for name, split in splits.items()}
    return MiniClip(mini.model, tokenizer, made | quality)


def evaluate(
    mini: MiniClip, settings: MiniSettings, *, n: int = 1000, split: str = "train", seed: int = 2_000_000
) -> dict[str, float]:
    """How good it is on scenes it was not trained on.

    Returns:
        recall@1 and @10 both ways with the full captions of ``n`` scenes of two or three objects (ties count against
        it; scenes with equal captions count as right for each other), and the accuracy of naming the color, the shape
        and both of a single object among all 8, 8 and 64 choices.
    """
    raster = {"grid": settings.grid, "jitter": settings.jitter}
    world = make_scenes(n, seed=seed, objects=(2, 3), split=split, **raster)
    texts = [sentences.captions(scene)[0].text for scene in world]
    scores = mini.encode_texts(texts) @ mini.encode_pictures(world.pictures()).T
    same = np.array(texts)[:, None] == np.array(texts)[None]
    report = {}
    for name, matrix in (("text_to_image", scores), ("image_to_text", scores.T)):
        own = np.where(same, matrix, -np.inf).max(axis=1)
        rank = ((matrix >= own[:, None]) & ~same).sum(axis=1)
        report |= {f"{name}_recall@{k}": float((rank < k).mean()) for k in (1, 10)}
    single = make_scenes(n, seed=seed + 1, objects=(1, 1), split=split, **raster)
    names = mini.encode_texts([f"a {color} {shape}" for color in COLORS for shape in SHAPES])
    chosen = (mini.encode_pictures(single.pictures()) @ names.T).argmax(axis=1)
    color, shape = (
        (chosen // len(SHAPES) == single.layout.color[:, 0]),
        (chosen % len(SHAPES) == single.layout.shape[:, 0]),
    )
    return report | {
        "color_accuracy": float(color.mean()),
        "shape_accuracy": float(shape.mean()),
        "both_accuracy": float((color & shape).mean()),
    }


def word_tokenizer(languages: Sequence[str] = ("en",)) -> PreTrainedTokenizerFast:
    """A tokenizer that knows every word of the scenes' sentences in some languages, lower case, one token per word."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from chiasm.worlds.language import known_words

    # CLIP's pooling treats an end token with id 2 as an old special case, so 2 is the unknown word.
    special = ["<pad>", "<start>", "<unknown>", "<end>"]
    extra = ["a", "photo", "of", "the", "that", "is", "there", "how", "many", "are", "what", "?"]
    listed = [word for language in languages for word in known_words(language)]
    vocabulary = {word: at for at, word in enumerate(dict.fromkeys([*special, *extra, *listed]))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    words.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\W_]+(?:-[^\W_]+)*'?|[^\w\s]"), "removed", invert=True)  # type: ignore[assignment]
    words.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<start>",
        unk_token="<unknown>",
        eos_token="<end>",
        model_max_length=48,
    )


def _untrained(settings: MiniSettings, tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    from transformers import CLIPConfig, CLIPModel

    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": settings.text_width,
        "intermediate_size": settings.text_mlp,
        "num_hidden_layers": settings.text_layers,
        "num_attention_heads": settings.text_width // 32,
        "max_position_embeddings": 48,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 3,
        "projection_dim": settings.dim,
    }
    vision = {
        "hidden_size": settings.vision_width,
        "intermediate_size": settings.vision_mlp,
        "num_hidden_layers": settings.vision_layers,
        "num_attention_heads": settings.vision_width // 32,
        "image_size": 64,
        "patch_size": settings.patch,
        "projection_dim": settings.dim,
    }
    config: Any = CLIPConfig(text_config=text, vision_config=vision, projection_dim=settings.dim)
    # For towers this narrow plain attention is faster on a processor than the fused one.
    config._attn_implementation = "eager"
    return CLIPModel(config)


def _fit(
    mini: MiniClip,
    settings: MiniSettings,
    stages: list[tuple[SceneWorld, int]],
    rng: np.random.Generator,
    progress: Callable[[float], None] | None,
) -> list[float]:
    """Trains through the stages (world, epochs); returns the mean loss of every epoch."""
    import torch

    model, batch = mini.model.train(), settings.batch
    steps = sum(epochs * (len(world) // batch) for world, epochs in stages)
    groups = [{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": settings.decay}]
    groups.append({"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.98))
    warm = max(1, round(settings.warmup * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, 0.5 * (1 + float(np.cos(np.pi * min(1, step / max(1, steps))))))
    )
    half = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    losses, step = [], 0
    for world, epochs in stages:
        pixels = mini.pixels(world.pictures())
        # All captions are tokenized once; an epoch draws one of them per scene.
        texts = [
            caption.text
            for scene in world
            for language in settings.languages
            for caption in sentences.captions(scene, language)
        ]
        tokens = mini.tokens(texts)
        variants = len(texts) // max(1, len(world))
        for _ in range(epochs):
            order, style = rng.permutation(len(world)), rng.integers(0, variants, size=len(world))
            total = 0.0
            for start in range(0, len(order) - batch + 1, batch):
                rows = order[start : start + batch]
                picked = rows * variants + style[rows]
                loss = _loss(model, pixels[rows], tokens["input_ids"][picked], tokens["attention_mask"][picked], half)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                step += 1
                total += float(loss.detach())
                if progress is not None:
                    progress(step / steps)
            losses.append(round(total / max(1, len(order) // batch), 4))
    return losses


def _loss(model: Any, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, half: bool) -> torch.Tensor:
    """Symmetric InfoNCE of a batch: pixels ``[B, 3, 64, 64]``, ids and mask ``[B, L]``."""
    import torch
    from torch.nn import functional

    width = int(mask.sum(dim=1).max())
    # bfloat16 halves the time on processors that have it; vectors, logits and loss stay float32.
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        seen = model.get_image_features(pixel_values=pixels).pooler_output
    read = model.get_text_features(input_ids=ids[:, :width], attention_mask=mask[:, :width]).pooler_output
    logits = model.logit_scale.exp().clamp(max=100) * _unit(seen.float()) @ _unit(read).T
    target = torch.arange(len(pixels))
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def _unit(features: Any) -> torch.Tensor:
    from torch.nn import functional

    # transformers 5 wraps the features in an output object whose pooled vector is already projected.
    features = getattr(features, "pooler_output", features)
    return functional.normalize(features, dim=-1)
