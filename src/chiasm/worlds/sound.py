"""Scenes as sound: a tone code that can be decoded without loss, and captions spoken by espeak-ng.

The code. Every attribute value has one tone; an object is five tones of 60 ms with 20 ms of silence after each: shape,
color, texture, size, place. The values in this order (8 shapes, 8 colors, 4 textures, 3 sizes, 9 places, as they stand
in `chiasm.worlds.vocabulary`) take the tones 0 .. 31 of a scale of semitones from 440 Hz: tone i has the frequency
440 * 2 ** (i / 12) Hz, so no two values share a tone. Objects follow each other from back to front.
"""

from __future__ import annotations

import functools
import io
import shutil
import subprocess
import wave
from dataclasses import dataclass

import numpy as np

from chiasm.errors import BadInput, ChiasmError, MissingExtra, unknown_name
from chiasm.items import Sound
from chiasm.worlds.scenes import Scene
from chiasm.worlds.vocabulary import ATTRIBUTES, PLACES

RATE = 8000
TONE, PAUSE = 480, 160  # samples
FIELDS: dict[str, tuple[str, ...]] = {
    **{name: ATTRIBUTES[name] for name in ("shape", "color", "texture", "size")},
    "place": PLACES,
}
VOICES = {"en": "en-us", "de": "de", "fr": "fr-fr", "es": "es"}

_CODES = [(field, value) for field, values in FIELDS.items() for value in values]


@dataclass(frozen=True, slots=True)
class Heard:
    """One object as it was decoded from tones."""

    shape: str
    color: str
    texture: str
    size: str
    place: str


def frequency(field: str, value: str) -> float:
    """The tone of an attribute value in Hz; ``field`` is shape, color, texture, size or place."""
    if field not in FIELDS:
        raise unknown_name("field", field, FIELDS)
    if value not in FIELDS[field]:
        raise unknown_name(field, value, FIELDS[field])
    return 440.0 * 2 ** (_CODES.index((field, value)) / 12)


def tones(scene: Scene) -> Sound:
    """The tone code of a scene: float32 samples at 8 kHz, 0.4 s per object, on the 16-bit grid."""
    order = [_CODES.index((field, getattr(thing, field))) for thing in scene.objects for field in FIELDS]
    return Sound(_bank()[order].reshape(-1), RATE)


def decode(sound: Sound) -> list[Heard]:
    """Reads a tone code back, also under moderate noise: each field takes its loudest tone.

    Raises:
        BadInput: another rate, or a length that is no whole number of objects.
    """
    step, fields = TONE + PAUSE, len(FIELDS)
    if sound.rate != RATE or len(sound.samples) % (step * fields):
        raise BadInput(
            f"{len(sound.samples)} samples at {sound.rate} Hz are no tone code",
            where="decode",
            fix=f"Objects take 3200 samples at {RATE} Hz",
        )
    pieces = sound.samples.reshape(-1, step)[:, :TONE].astype(np.float64)
    time = np.arange(TONE) / RATE
    waves = np.exp(2j * np.pi * np.outer(time, [frequency(*code) for code in _CODES]))
    power = np.abs(pieces @ waves)
    heard, start = {}, 0
    for place, (field, values) in enumerate(FIELDS.items()):
        heard[field] = [values[i] for i in power[place::fields, start : start + len(values)].argmax(axis=1)]
        start += len(values)
    return [Heard(*row) for row in zip(*(heard[field] for field in FIELDS))]


@functools.cache
def _bank() -> np.ndarray:
    """All tones with their pauses, float32 ``[32, 640]``; soft edges of 5 ms, so that nothing clicks."""
    time = np.arange(TONE) / RATE
    edge = np.minimum(1, np.minimum(np.arange(TONE), np.arange(TONE)[::-1]) / 40)
    bank = np.zeros((len(_CODES), TONE + PAUSE))
    for row, code in enumerate(_CODES):
        bank[row, :TONE] = 0.5 * edge * np.sin(2 * np.pi * frequency(*code) * time)
    # Rounded to 16 bits: a last-bit difference between math libraries does not reach the output.
    grid = np.round(bank * 32767).astype(np.float32) / np.float32(32767)
    grid.setflags(write=False)
    return grid


def can_speak() -> bool:
    """True if espeak-ng is installed."""
    return shutil.which("espeak-ng") is not None


def speak(text: str, language: str = "en", *, words_per_minute: int = 150) -> Sound:
    """A sentence spoken by espeak-ng, float32 samples at its rate of 22,050 Hz.

    Raises:
        MissingExtra: espeak-ng is not installed.
        UnknownName: a language without a voice.
        ChiasmError: espeak-ng failed; its own message is passed on.
    """
    if language not in VOICES:
        raise unknown_name("language", language, VOICES)
    if not can_speak():
        raise MissingExtra(
            "spoken captions need the program espeak-ng",
            fix="Install it with the system's package manager: apt install espeak-ng",
        )
    # The text goes in over stdin, so that no sentence can be read as an option.
    command = ["espeak-ng", "-v", VOICES[language], "-s", str(words_per_minute), "--stdin", "--stdout"]
    done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=60, check=False)
    if done.returncode or not done.stdout:
        raise ChiasmError(done.stderr.decode(errors="replace").strip() or "no sound came back", where="espeak-ng")
    with wave.open(io.BytesIO(done.stdout)) as file:
        # A stream's header cannot know its length, so all frames that are there are read.
        samples = np.frombuffer(file.readframes(len(done.stdout)), dtype="<i2")
        return Sound(samples.astype(np.float32) / 32768, file.getframerate())


def wav_bytes(sound: Sound) -> bytes:
    """The sound as a 16-bit mono WAV file."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sound.rate)
        file.writeframes(np.round(np.clip(sound.samples, -1, 1) * 32767).astype("<i2").tobytes())
    return out.getvalue()
