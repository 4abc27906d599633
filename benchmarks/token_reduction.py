"""Wall time that token reduction saves beside the FLOPs it saves, on randomly initialized models of real sizes.

    encoder:  CLIP's ViT-B/16 at 224 pixels (197 tokens, 12 layers), r = 13, 16 (CrossGET, ToMe)
    prefill:  a LLaVA of 576 image tokens and 64 words, 12 layers of width 768 (VisionDrop, 64 and 128 tokens)

Targets: speed-up of the encoder and of the prefill at least 0.8 x the ratio of FLOPs; scoring, matching and merging at most
3 % of a ViT-B block. ``--small`` takes 4 layers, smaller batches and fewer rounds.
"""

from __future__ import annotations

import sys
from functools import partial

import torch
from compare import alternate, median, publish, ratio
from transformers import CLIPVisionConfig, CLIPVisionModel, LlavaConfig, LlavaForConditionalGeneration

from chiasm.blocks.attention import AttentionTap, listen
from chiasm.compress.crossget import CrossGET, ToMe
from chiasm.compress.flops import stack_flops
from chiasm.compress.token_reducer import Schedule, TokenReducer, TokenState
from chiasm.compress.visiondrop import VisionDrop

SMALL = "--small" in sys.argv
LAYERS, BATCH, ROUNDS = (4, 4, 3) if SMALL else (12, 8, 7)
WIDTH, HEADS, INNER = 768, 12, 3072
ENOUGH, MOST = 0.8, 0.03
# Sixteen a layer leave too few for sixteen in the last of twelve layers.
SIXTEEN = ([16] * 11 + [10])[:LAYERS]


def vit() -> CLIPVisionModel:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        image_size=224,
        patch_size=16,
    )
    return CLIPVisionModel(config).eval()


def encoder() -> list[dict]:
    """Encoding with and without merging; both models have the same weights, so that rounds can alternate."""
    pixels = torch.randn(BATCH, 3, 224, 224)
    plain, rows = vit(), []
    methods = {
        "CrossGET r=13": CrossGET(13),
        "CrossGET r=16": CrossGET(SIXTEEN),
        "CrossGET r=16, full keys": CrossGET(SIXTEEN, keys="full"),
        "ToMe r=16": ToMe(SIXTEEN),
    }
    for name, method in methods.items():
        model = vit()
        method.attach(model)
        full, less = method.flops()
        seconds = alternate({"full": partial(plain, pixels), name: partial(model, pixels)}, rounds=ROUNDS)
        method.detach()
        faster = ratio(seconds, "full", name)
        rows.append(
            {
                "what": f"encoder, {name}",
                "full ms": 1000 * median(seconds["full"]) / BATCH,
                "ms": 1000 * median(seconds[name]) / BATCH,
                "speed-up": faster,
                "FLOP ratio": full / less,
                "target": ENOUGH * full / less,
                "holds": faster >= ENOUGH * full / less,
            }
        )
    return rows


def overhead() -> list[dict]:
    """`shares` on one thread and on all: many small steps gain less from threads than the block's few large products."""
    threads, rows = torch.get_num_threads(), []
    for number in sorted({1, threads}):
        torch.set_num_threads(number)
        rows += shares(f"{number} thread{'s' * (number > 1)}")
    torch.set_num_threads(threads)
    return rows


def shares(where: str) -> list[dict]:
    """Score, matching and merge of 16 of 198 tokens beside one ViT-B block, on queries and keys that this block made."""
    model = vit()
    block, x = model.encoder.layers[0], torch.randn(BATCH, 198, WIDTH)
    tap = AttentionTap(model).attach()
    with listen() as calls:
        block(x, None)
    tap.detach()
    call, state = calls[0], TokenState.start(x, [0, -1])
    arms = {
        "CrossGET": TokenReducer(Schedule(16), score="cross", merge="guided", keys="mean"),
        "CrossGET, full keys (its CLIP code)": TokenReducer(Schedule(16), score="cross", merge="guided"),
        "CrossGET, attention as importance (its LLaVA code)": TokenReducer(
            Schedule(16), score="attention", merge="guided", keys="mean"
        ),
        "ToMe": TokenReducer(Schedule(16), match="bipartite", keys="mean", keep_order=False),
    }
    rows = []
    for name, reducer in arms.items():
        seconds = alternate(
            {"block": partial(block, x, None), name: partial(reducer, state, 16, call)},
            rounds=3 * ROUNDS,
        )
        share = ratio(seconds, name, "block")
        rows.append(
            {
                "what": f"matching and merging, {name}, {where}",
                "full ms": 1000 * median(seconds["block"]) / BATCH,
                "ms": 1000 * median(seconds[name]) / BATCH,
                "share of a block": share,
                "target": MOST,
                "holds": share <= MOST,
            }
        )
    return rows


def prefill() -> list[dict]:
    """Reading a prompt of one picture, the (small) encoder included on both sides."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 336,
            "patch_size": 14,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": 1000,
            "hidden_size": WIDTH,
            "intermediate_size": 2048,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
        },
        image_token_id=999,
    )
    model = LlavaForConditionalGeneration(config).eval()
    ids = torch.cat([torch.full((2, 576), 999), torch.randint(5, 900, (2, 64))], dim=1)
    inputs = {"input_ids": ids, "pixel_values": torch.randn(2, 3, 336, 336), "logits_to_keep": 1}
    rows = []
    for tokens in (128, 64):
        pruner = VisionDrop(tokens)

        def reduced(pruner: VisionDrop = pruner) -> None:
            pruner.attach(model)
            model(**inputs)
            pruner.detach()

        pruner.attach(model)
        full, less = pruner.flops(64)
        pruner.detach()
        eyes = 2 * stack_flops([577] * 2, [577] * 2, 256, 512)
        share = (2 * full + eyes) / (2 * less + eyes)
        seconds = alternate({"full": lambda: model(**inputs), "VisionDrop": reduced}, rounds=ROUNDS)
        faster = ratio(seconds, "full", "VisionDrop")
        rows.append(
            {
                "what": f"prefill, VisionDrop {tokens} of 576",
                "full ms": 1000 * median(seconds["full"]) / 2,
                "ms": 1000 * median(seconds["VisionDrop"]) / 2,
                "speed-up": faster,
                "FLOP ratio": share,
                "target": ENOUGH * share,
                "holds": faster >= ENOUGH * share,
            }
        )
    return rows


if __name__ == "__main__":
    with torch.inference_mode():
        publish("token reduction", [*encoder(), *overhead(), *prefill()])
