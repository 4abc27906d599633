"""`PocketSound`: a recording -> a vector in the pocket space, through pictures of its sound.

    waveform -> log-mel pictures of 2.24 seconds -> the image network's 1280 features, and figures of 32 bands
             -> alignment layer -> mean over the pictures -> unit length

The image network (EfficientNet-Lite0, `PocketImage`) is the one that looks at photographs; what learns is the alignment
layer, by the later step of OneEncoder (arXiv 2409.11059) against the frozen vectors of sentences that name the sounds.
``make pocket-sound`` trains it; ``sound.md`` beside this file says on what, and what it measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.modules import InputModule
from torch import Tensor, nn

from chiasm.blocks.alignment import AlignmentLayer, filled, pooled
from chiasm.blocks.saved import Saved
from chiasm.encode.pocket.image import FEATURES as PICTURE_FEATURES
from chiasm.encode.pocket.image import SIZE, PocketImage
from chiasm.errors import BadInput
from chiasm.items import Sound

RATE = 16_000
HOP, FRAME = 160, 1024  # 10 and 64 ms
MELS, LOWEST, HIGHEST = 128, 30.0, 8000.0  # bands, Hz
RANGE = 80.0  # dB below the loudest moment of the recording; what is softer is black
SILENT = -70.0  # dB: the loudest band of a recording in which nothing can be heard (full scale is about +50)
WINDOW = 224  # frames of a picture, one a pixel
MOST = 12  # pictures of a recording of up to 30 seconds, evenly spaced
BANDS = 32
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_RHYTHM, _RHYTHMS = 64, 8  # modulation frequencies up to 12.5 Hz, in so many groups
FEATURES = PICTURE_FEATURES + BANDS * (3 + len(_QUANTILES) + _RHYTHMS)
HIDDEN = 128
WEIGHTS = "sound.safetensors"


def trained() -> bool:
    """Whether weights of the sound route lie beside this file."""
    return resources.files("chiasm.encode.pocket").joinpath(WEIGHTS).is_file()


class PocketSound(Saved, InputModule):
    """The module of the pocket space's sound route: recordings in, ``sentence_embedding`` float32 ``[N, dim]`` of unit length out.

    Features in: ``log_mel`` float32 ``[N, W, 128, 224]`` in dB below the loudest moment, ``attention_mask`` ``[N, W]``. It also
    gives ``input_features`` ``[N, W, 1792]``, which the alignment layer reads.

    The space's fingerprint does not cover this module (``grown``): it adds vectors, those of pictures and texts stay what they
    are. A recording in which somebody speaks is placed by its transcript (``speech_as_text``).

    Args:
        dim: length of a vector; that of the text encoder.
        hidden: width of the alignment layer.
        dropout: of the alignment layer, in training.
    """

    config_keys: list[str] = ["dim", "hidden", "dropout"]  # noqa: RUF012 (the library declares it so)
    modalities = ["audio"]  # noqa: RUF012 # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    grown = True
    speech_as_text = True

    def __init__(self, dim: int = 384, *, hidden: int = HIDDEN, dropout: float = 0.3) -> None:
        super().__init__()
        self.dim, self.hidden, self.dropout = dim, hidden, dropout
        self.picture = PocketImage()
        self.mean = nn.Buffer(torch.zeros(FEATURES))
        self.spread = nn.Buffer(torch.ones(FEATURES))
        self.align = AlignmentLayer(FEATURES, dim, hidden=hidden, dropout=dropout)

    @classmethod
    def pretrained(cls, picture: PocketImage) -> PocketSound:
        """With the weights that come with Chiasm.

        Args:
            picture: the space's image network, which is shared.
        """
        from safetensors.torch import load

        blob = resources.files("chiasm.encode.pocket").joinpath(WEIGHTS).read_bytes()
        weights = {name: value.float() for name, value in load(blob).items()}
        module = cls(weights["align.4.weight"].numel(), hidden=len(weights["align.0.weight"]))
        module.picture = picture
        missing, unexpected = module.load_state_dict(weights, strict=False)
        assert not unexpected, unexpected
        assert all(name.startswith("picture.") for name in missing), missing
        return module

    def head(self) -> dict[str, Tensor]:
        """What is not the image network: what ``sound.safetensors`` holds."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("picture.")}

    def prepare_one(self, sound: Sound) -> np.ndarray:
        """A recording of any rate -> ``[W, 128, 224]`` float32; pure, thread-safe, about a millisecond a second.

        Raises:
            ValueError: nothing can be heard in it.
        """
        from chiasm.encode.model_space import resample

        mel = log_mel(resample(sound, RATE))
        loudest = float(mel.max())
        if loudest < SILENT:
            raise ValueError("nothing can be heard in it")
        mel = np.clip(mel - loudest, -RANGE, 0)
        length = mel.shape[1]
        if length < WINDOW:
            mel = np.pad(mel, ((0, 0), (0, WINDOW - length)), constant_values=-RANGE)
        # Neighbors overlap by half; the last one ends where the recording ends.
        count = min(1 + -(-max(length - WINDOW, 0) // (WINDOW // 2)), MOST)
        starts = np.linspace(0, max(length - WINDOW, 0), count).astype(int)
        return np.stack([mel[:, start : start + WINDOW] for start in starts])

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Puts recordings together for `forward`.

        Args:
            inputs: N results of `prepare_one`, `Sound`s, or dicts with ``array`` and ``sampling_rate``.
            prompt: ignored; it belongs to text.
            **kwargs: ignored (task and modality, which the router passes on).

        Raises:
            BadInput: something else.
        """
        rows = [self._prepared(one) for one in inputs]
        most = max((len(row) for row in rows), default=1)
        mel = np.full((len(rows), most, MELS, WINDOW), -RANGE, np.float32)
        mask = np.zeros((len(rows), most), bool)
        for i, row in enumerate(rows):
            mel[i, : len(row)], mask[i, : len(row)] = row, True
        return {"log_mel": torch.from_numpy(mel), "attention_mask": torch.from_numpy(mask)}

    def _prepared(self, one: Any) -> np.ndarray:
        if isinstance(one, np.ndarray) and one.ndim == 3 and one.shape[1:] == (MELS, WINDOW):
            return one
        if isinstance(one, dict) and "array" in one:
            one = Sound(np.asarray(one["array"], np.float32), int(one.get("sampling_rate", RATE)))
        if isinstance(one, Sound):
            return self.prepare_one(one)
        raise BadInput(
            f"cannot take a {type(one).__name__}", where="PocketSound", fix="Give a Sound or what prepare_one returns"
        )

    @torch.no_grad()
    def describe(self, mel: Tensor) -> Tensor:
        """What the alignment layer reads of pictures of sound; without a gradient, since the image network stays as it is.

        Args:
            mel: float32 ``[..., 128, 224]`` in dB, -80 to 0.

        Returns:
            float32 ``[..., 1792]``: 1280 features of the image network, and of each of 32 bands mean, spread, five quantiles,
            spread of its changes, and eight groups of modulation frequencies.
        """
        flat = mel.reshape(-1, MELS, WINDOW)
        light = (flat.flip(1) / RANGE + 1) * 255
        pictures = nn.functional.interpolate(light[:, None], (SIZE, SIZE), mode="bilinear", align_corners=False)
        pixels = pictures[:, 0, :, :, None].expand(-1, -1, -1, 3)
        seen = self.picture._maps(pixels).mean(dim=(2, 3))
        bands = flat.unflatten(1, (BANDS, -1)).mean(2)
        mean = bands.mean(2, keepdim=True)
        rhythm = torch.fft.rfft(bands - mean, n=512, dim=2).abs()[..., 1 : _RHYTHM + 1]
        figures = torch.cat(
            [
                mean,
                bands.std(2, keepdim=True),
                torch.quantile(bands, torch.tensor(_QUANTILES, device=mel.device), dim=2).permute(1, 2, 0),
                bands.diff(dim=2).std(2, keepdim=True),
                (rhythm.unflatten(2, (_RHYTHMS, -1)).mean(3) + 1e-3).log(),
            ],
            dim=2,
        )
        return torch.cat([seen, figures.flatten(1)], dim=1).unflatten(0, mel.shape[:-2])

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds ``input_features`` ``[N, W, 1792]`` (unless they are given) and ``sentence_embedding`` ``[N, dim]``.

        In training the vectors of sentences come as ``sentence_embedding`` and pass through.
        """
        if "sentence_embedding" in features:
            return features
        if "input_features" not in features:
            features["input_features"] = self.describe(features["log_mel"].to(self.mean.device, self.mean.dtype))
        x = features["input_features"]
        mask = filled(features.get("attention_mask"), x)
        out = self.align((x - self.mean) / self.spread)
        features["sentence_embedding"] = nn.functional.normalize(pooled(out, mask), dim=-1)
        return features

    def get_embedding_dimension(self) -> int:
        return self.dim


@lru_cache(maxsize=1)
def _bank() -> np.ndarray:
    from transformers.audio_utils import mel_filter_bank

    return mel_filter_bank(FRAME // 2 + 1, MELS, LOWEST, HIGHEST, RATE, mel_scale="htk").astype(np.float32)


def log_mel(samples: np.ndarray) -> np.ndarray:
    """Energy in 128 mel bands in dB, float32 ``[128, frames]``, one frame each 10 ms.

    Args:
        samples: float32 ``[T]`` at 16 kHz.
    """
    if len(samples) < FRAME:
        samples = np.pad(samples, (0, FRAME - len(samples)))
    frames = np.lib.stride_tricks.sliding_window_view(samples, FRAME)[::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(FRAME).astype(np.float32), axis=1)) ** 2
    return (10 * np.log10(power.astype(np.float32) @ _bank() + 1e-8)).T.astype(np.float32)
