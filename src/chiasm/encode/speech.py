"""Speech to text, offline: PocketSphinx with the American English model that its package brings."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from chiasm.errors import missing_extra

RATE = 16_000
# Room noise added before recognition, RMS on a scale of 1 (-60 dB). The acoustic model was trained on real rooms and
# fails on digital silence: on five synthesized sentences the word error rate fell from 0.86 to 0.27.
DITHER = 1e-3

# Utterances, as the voice detector (of WebRTC, frames of 30 ms) finds them, in seconds.
FRAME = 0.03
PAUSE = 0.5  # a longer pause ends an utterance
MARGIN = 0.2  # kept before and after it
LEAST = 0.4  # shorter ones are knocks
# Speech rises and falls: the standard deviation of its level was 9 dB and more in clean recordings and 3.7 dB under
# white noise of a third of its power. Rain, engines and hiss are steadier, and slow to recognize.
LEAST_DEVIATION = 3.5  # dB

# What the recognizer hears in noise are few words, slow or repeated, of low confidence. These bounds were chosen on
# recordings of ten kinds of sounds (ESC-10, training part) and on synthesized sentences. Single words are lost to them.
LEAST_WORDS = 3
LEAST_WORDS_PER_SECOND = 2.0
LEAST_CONFIDENCE = 0.15  # mean posterior of the words
LEAST_DISTINCT = 0.6  # share of different words

# A recognizer holds state and must not be shared: one per thread, made when first needed (0.3 s).
_LOCAL = threading.local()


def recognize(samples: np.ndarray) -> str:
    """The English words in a mono recording, lower case, one line per utterance; ``""`` where nobody seems to speak.

    Deterministic: the same samples give the same words in any thread, whatever was recognized before.

    Args:
        samples: float ``[T]`` in [-1, 1] at 16 kHz, up to about a minute.

    Raises:
        MissingExtra: pocketsphinx is not installed.
    """
    decoder = _decoder()
    noise = np.random.default_rng(0).standard_normal(len(samples), dtype=np.float32)
    pcm = (np.clip(samples + DITHER * noise, -1, 1) * 32767).astype("<i2")
    lines = []
    for start, end in utterances(pcm):
        decoder.start_utt()
        decoder.process_raw(pcm[start:end].tobytes(), full_utt=True)
        decoder.end_utt()
        if decoder.hyp() is not None:
            words = [(s.word, s.prob) for s in decoder.seg() if s.word[0] not in "<[+"]
            if is_speech(words, (end - start) / RATE):
                # The dictionary numbers pronunciations: "the(2)".
                lines.append(" ".join(word.split("(")[0] for word, _ in words))
    return "\n".join(lines)


def is_speech(words: list[tuple[str, float]], seconds: float) -> bool:
    """Whether recognized (word, posterior) pairs look like speech rather than like words heard in noise."""
    return (
        len(words) >= LEAST_WORDS
        and len(words) / max(seconds - 2 * MARGIN, FRAME) >= LEAST_WORDS_PER_SECOND
        and sum(confidence for _, confidence in words) / len(words) >= LEAST_CONFIDENCE
        and len({word for word, _ in words}) / len(words) >= LEAST_DISTINCT
    )


def utterances(pcm: np.ndarray) -> list[tuple[int, int]]:
    """Start and end (in samples) of the parts of a 16-bit recording in which somebody seems to speak."""
    from pocketsphinx import Vad

    detector = Vad(Vad.STRICT, RATE, FRAME)
    step = detector.frame_bytes // 2
    voiced = [detector.is_speech(pcm[i : i + step].tobytes()) for i in range(0, len(pcm) - step + 1, step)]
    found: list[list[int]] = []
    for index in np.flatnonzero(voiced).tolist():
        if found and index - found[-1][1] <= PAUSE / FRAME:
            found[-1][1] = index + 1
        else:
            found.append([index, index + 1])
    margin = round(MARGIN * RATE)
    return [
        (max(first * step - margin, 0), min(last * step + margin, len(pcm)))
        for first, last in found
        if (last - first) * FRAME >= LEAST and _deviation(pcm[first * step : last * step], step) >= LEAST_DEVIATION
    ]


def _deviation(pcm: np.ndarray, step: int) -> float:
    """How much the level varies from frame to frame, in dB."""
    power = (pcm.reshape(-1, step).astype(np.float32) ** 2).mean(axis=1)
    return float(np.std(10 * np.log10(power + 1)))


def _decoder() -> Any:
    try:
        from pocketsphinx import Decoder
    except ImportError as error:
        raise missing_extra("recognizing speech", "media", "pocketsphinx") from error
    if not hasattr(_LOCAL, "decoder"):
        # cmn="batch": each utterance is normalized by itself, not by what this thread heard before.
        _LOCAL.decoder = Decoder(samprate=RATE, cmn="batch", loglevel="FATAL")
    return _LOCAL.decoder
