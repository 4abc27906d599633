"""Tiny, randomly initialized models of real architectures, written to disk with their processors.

Each function writes a folder of a few hundred kilobytes that `chiasm.load`, transformers and sentence-transformers read
like a checkpoint from a hub. No network and no fetched vocabulary: the tokenizers are made here.
"""

from __future__ import annotations

import json
from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = [
    "a",
    "an",
    "the",
    "of",
    "in",
    "on",
    "with",
    "and",
    "photo",
    "picture",
    "sound",
    "song",
    "text",
    "query",
    "document",
    "red",
    "green",
    "blue",
    "cat",
    "dog",
    "horse",
    "house",
    "car",
    "tree",
    "rain",
    "music",
    "man",
    "woman",
    "child",
    "snow",
    "sea",
]
DIM = 24  # of the CLIP, SigLIP and CLAP spaces
TEXT_DIM = 16  # of the text model


def _seed(seed: int) -> None:
    import torch

    torch.manual_seed(seed)


def _clip_tokenizer():
    """Byte-pair tokenizer without merges: one token per letter, as CLIP's would do for unknown words."""
    from transformers import CLIPTokenizer

    names = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: i for i, name in enumerate(names)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=32), vocabulary


def _word_tokenizer(*, roberta: bool, maximum: int):
    """A fast word-level tokenizer with BERT's or RoBERTa's special tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>"] if roberta else ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {name: i for i, name in enumerate([*special, *WORDS, *(f"w{c}" for c in LETTERS)])}
    unknown, first, last = ("<unk>", "<s>", "</s>") if roberta else ("[UNK]", "[CLS]", "[SEP]")
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B {last}",
        special_tokens=[(first, vocabulary[first]), (last, vocabulary[last])],
    )
    names = {"pad_token": "<pad>" if roberta else "[PAD]", "unk_token": unknown, "cls_token": first, "sep_token": last}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=maximum, **names), vocabulary


def write_clip(folder: Path, *, seed: int = 0) -> Path:
    """A CLIP of 24 dimensions for 32 x 32 pictures with patches of 8."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    tokenizer, vocabulary = _clip_tokenizer()
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    _seed(seed)
    config = CLIPConfig(
        text_config={
            **tower,
            "vocab_size": len(vocabulary),
            "max_position_embeddings": 32,
            "bos_token_id": vocabulary["<|startoftext|>"],
            "eos_token_id": vocabulary["<|endoftext|>"],
            "pad_token_id": vocabulary["<|endoftext|>"],
        },
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=DIM,
    )
    CLIPModel(config).save_pretrained(folder)
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def write_siglip(folder: Path, *, seed: int = 0) -> Path:
    """A SigLIP of 24 dimensions for 32 x 32 pictures with patches of 8."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipProcessor

    tokenizer, vocabulary = _word_tokenizer(roberta=True, maximum=16)
    tokenizer.model_input_names = ["input_ids"]  # as the published checkpoints: the padding is attended to
    tokenizer.init_kwargs["model_input_names"] = ["input_ids"]
    tower = {"hidden_size": DIM, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    _seed(seed)
    config = SiglipConfig(
        text_config={
            **tower,
            "vocab_size": len(vocabulary),
            "max_position_embeddings": 16,
            "bos_token_id": vocabulary["<s>"],
            "eos_token_id": vocabulary["</s>"],
            "pad_token_id": vocabulary["<pad>"],
        },
        vision_config={**tower, "image_size": 32, "patch_size": 8},
    )
    SiglipModel(config).save_pretrained(folder)
    pictures = SiglipImageProcessor(size={"height": 32, "width": 32})
    SiglipProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def write_clap(folder: Path, *, seed: int = 0, fusion: bool = False) -> Path:
    """A CLAP of 24 dimensions for one second of sound at 8 kHz."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor

    tokenizer, vocabulary = _word_tokenizer(roberta=True, maximum=30)
    _seed(seed)
    config = ClapConfig(
        text_config={
            "vocab_size": len(vocabulary),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 34,
            "pad_token_id": vocabulary["<pad>"],
            "projection_dim": DIM,
        },
        audio_config={
            "window_size": 4,
            "num_mel_bins": 16,
            "spec_size": 64,
            "patch_embed_input_channels": 1,
            "patch_size": 4,
            "patch_stride": [4, 4],
            "patch_embeds_hidden_size": 16,
            "hidden_size": 32,
            "depths": [1, 1],
            "num_attention_heads": [2, 2],
            "enable_fusion": fusion,
            "aff_block_r": 2,
            "projection_dim": DIM,
        },
        projection_dim=DIM,
    )
    ClapModel(config).save_pretrained(folder)
    sounds = ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=8000,
        hop_length=160,
        max_length_s=1,
        fft_window_size=256,
        frequency_min=50,
        frequency_max=3800,
        truncation="fusion" if fusion else "rand_trunc",
    )
    ClapProcessor(feature_extractor=sounds, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def write_bert(folder: Path, *, seed: int = 0) -> Path:
    """A plain transformers BERT of 16 dimensions (no sentence-transformers files)."""
    from transformers import BertConfig, BertModel

    tokenizer, vocabulary = _word_tokenizer(roberta=False, maximum=64)
    _seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=TEXT_DIM,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=vocabulary["[PAD]"],
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_text(folder: Path, *, seed: int = 0, prompts: dict[str, str] | None = None) -> Path:
    """A sentence-transformers text model: BERT, mean pooling, unit length; optionally with prompts."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    plain = write_bert(folder.parent / f"{folder.name}-bert", seed=seed)
    transformer = Transformer(str(plain))
    model = SentenceTransformer(
        modules=[transformer, Pooling(TEXT_DIM, "mean"), Normalize()], device="cpu", prompts=prompts
    )
    model.save(str(folder), create_model_card=False)
    return folder


def picture(seed: int = 0, size: tuple[int, int] = (48, 40)):
    """A random RGB picture with large patches of color (noise would be averaged away by resizing)."""
    import numpy as np
    from PIL import Image

    cells = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.NEAREST)


def sound(seed: int = 0, seconds: float = 0.5, rate: int = 8000):
    """A chord of three random tones."""
    import numpy as np

    from chiasm.items import Sound

    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    tones = [np.sin(2 * np.pi * f * t) for f in rng.uniform(100, 3000, 3)]
    return Sound((np.mean(tones, axis=0) * 0.5).astype(np.float32), rate)


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())
