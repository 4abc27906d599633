"""``digits_audio_image`` in three views: spoken digits, handwritten digits, and their words in five languages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from chiasm.learn.alignment.one_encoder.sound_pairs import digit_recordings, read_recordings
from chiasm.learn.features import Features

FRAMES = 24  # of a recording
BANDS = 32
PATCH = 7  # pixels; 16 patches a picture
_WORD = 24  # letters' features of a word


def digit_views(
    folder: Path, seed: int, *, smoke: bool = False
) -> dict[str, tuple[Features, np.ndarray, Features, np.ndarray]]:
    """View -> training features, their digits, test features, their digits.

    Sounds are log-mel frames, pictures raw patches, words letter pairs; each token also says where it stands. Words are the same
    in training and test: what is tested is whether unseen recordings find unseen pictures.

    Args:
        folder: the set.
        seed: which training items.
        smoke: a tenth of them.
    """
    rng = np.random.default_rng(seed)
    images, recordings, tested = (150, 80, 60) if smoke else (3000, 900, 600)
    archive = np.load(folder / "images.npz")
    pick, held = rng.permutation(len(archive["train_x"]))[:images], rng.permutation(len(archive["test_x"]))[:tested]
    every = digit_recordings(folder)
    names = json.loads((folder / "words.json").read_text(encoding="utf-8"))
    english = names["en"]
    training = [one for one in every if one.split == "train"]
    training = [training[i] for i in rng.permutation(len(training))[:recordings]]
    testing = [one for one in every if one.split == "test"][:: 4 if smoke else 1]
    words = [(word, digit) for language in sorted(names) for digit, word in enumerate(names[language])]
    spelled = _spelled([word for word, _ in words])
    meant = np.array([digit for _, digit in words])

    def kinds(found: list) -> np.ndarray:
        return np.array([english.index(one.kind) for one in found])

    return {
        "image": (
            _patches(archive["train_x"][pick]),
            archive["train_y"][pick].astype(int),
            _patches(archive["test_x"][held]),
            archive["test_y"][held].astype(int),
        ),
        "text": (spelled, meant, spelled, meant),
        "audio": (_frames(folder, training), kinds(training), _frames(folder, testing), kinds(testing)),
    }


def _placed(tokens: np.ndarray) -> Features:
    """Tokens with a one-hot of their place behind them."""
    place = np.broadcast_to(np.eye(tokens.shape[1], dtype=np.float32), (len(tokens), tokens.shape[1], tokens.shape[1]))
    return Features({"input_features": np.concatenate([tokens.astype(np.float32), place], axis=2)})


def _patches(pictures: np.ndarray) -> Features:
    n = 28 // PATCH
    cut = pictures.reshape(-1, n, PATCH, n, PATCH).transpose(0, 1, 3, 2, 4).reshape(len(pictures), n * n, PATCH * PATCH)
    return _placed(cut.astype(np.float32) / 128 - 0.5)


def _frames(folder: Path, recordings: list) -> Features:
    """24 stretches of the log-mel energies of each recording, in 32 bands, relative to its loudest moment."""
    from chiasm.encode.model_space import resample
    from chiasm.encode.pocket.sound import RATE, log_mel

    rows = []
    for sound in read_recordings(folder, recordings):
        mel = log_mel(resample(sound, RATE))
        mel = np.clip((mel - mel.max()) / 20 + 2, -2, 2).reshape(BANDS, -1, mel.shape[1]).mean(1)
        at = np.linspace(0, mel.shape[1] - 1, FRAMES)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, mel.shape[1] - 1)
        rows.append((mel[:, low] * (1 - (at - low)) + mel[:, high] * (at - low)).T)
    return _placed(np.stack(rows))


def _spelled(words: list[str]) -> Features:
    """Letter pairs of each word, hashed to random vectors that do not depend on the seed."""
    import zlib

    longest = max(len(word) for word in words) + 1
    tokens = np.zeros((len(words), longest, _WORD), np.float32)
    for i, word in enumerate(words):
        padded = f"^{word}$"
        for j in range(len(padded) - 1):
            code = zlib.crc32(padded[j : j + 2].encode())
            tokens[i, j] = np.random.default_rng(code).standard_normal(_WORD)
    placed = _placed(tokens).dense["input_features"]
    mask = np.arange(longest)[None, :] < np.array([len(word) + 1 for word in words])[:, None]
    return Features({"input_features": placed, "attention_mask": mask})
