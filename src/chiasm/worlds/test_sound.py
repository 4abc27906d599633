"""Tones are read back without loss, clips show their event where they say it is."""

from __future__ import annotations

import io
import wave

import numpy as np
import pytest

from chiasm.errors import BadInput, UnknownName
from chiasm.items import Sound
from chiasm.worlds import make_scenes
from chiasm.worlds.motion import EVENTS, clip
from chiasm.worlds.sound import FIELDS, can_speak, decode, frequency, speak, tones, wav_bytes

WORLD = make_scenes(60, seed=5)


def test_every_value_has_a_tone_of_its_own_and_the_code_is_the_documented_one():
    hertz = [frequency(field, value) for field, values in FIELDS.items() for value in values]
    assert len(set(hertz)) == len(hertz) == 32
    assert hertz[0] == 440
    np.testing.assert_allclose(np.diff(np.log2(hertz)), 1 / 12)
    with pytest.raises(UnknownName, match="red"):
        frequency("color", "redd")


def test_tones_decode_to_the_scene_also_from_a_wav_file_and_under_noise():
    rng = np.random.default_rng(0)
    for scene in WORLD:
        sound = tones(scene)
        truth = [(o.shape, o.color, o.texture, o.size, o.place) for o in scene.objects]
        assert sound.samples.dtype == np.float32
        assert sound.seconds == pytest.approx(0.4 * len(truth))
        with wave.open(io.BytesIO(wav_bytes(sound))) as file:
            kept = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32767
        noise = sound.samples + 0.2 * rng.standard_normal(len(sound.samples)).astype(np.float32)
        for heard in (sound, Sound(kept, 8000), Sound(noise, 8000)):
            assert [(o.shape, o.color, o.texture, o.size, o.place) for o in decode(heard)] == truth
    np.testing.assert_array_equal(kept, sound.samples)


def test_what_is_no_tone_code_is_refused():
    with pytest.raises(BadInput, match="no tone code"):
        decode(Sound(np.zeros(100, np.float32), 8000))
    with pytest.raises(BadInput, match="44100"):
        decode(Sound(np.zeros(3200, np.float32), 44100))


@pytest.mark.speech
@pytest.mark.skipif(not can_speak(), reason="espeak-ng is not installed")
def test_speech_is_sound_and_longer_for_longer_sentences():
    short, long = speak("a red circle"), speak("a large striped red circle and two small blue stars")
    assert 0.3 < short.seconds < long.seconds < 20
    assert np.sqrt((short.samples**2).mean()) > 0.01
    assert np.array_equal(speak("a red circle").samples, short.samples)
    assert not np.array_equal(speak("a red circle", "de").samples, short.samples)
    speak("-h")  # no sentence is read as an option
    with pytest.raises(UnknownName):
        speak("a", "xx")


def test_clips_are_the_same_every_time_and_highlights_are_where_things_change():
    events = set()
    for index in range(40):
        made, again = clip(WORLD, index), clip(WORLD, index)
        assert np.array_equal(made.frames, again.frames)
        assert np.array_equal(made.sound.samples, again.sound.samples)
        events.add(made.event)
        assert made.event in EVENTS
        assert made.caption.endswith(made.event)
        shown = np.flatnonzero(made.highlight)
        assert np.array_equal(shown, np.arange(shown[0], shown[-1] + 1))
        assert 6 <= len(shown) <= 12
        # The actor's size and middle, from the pixels that are seen, before and after the event.
        start, stop = max(0, shown[0] - 1), shown[-1]
        seen = [np.argwhere(made.labels[t] == made.actor + 1) for t in (start, stop)]
        covered = any(len(part) < 12 for part in seen)
        if made.event == "blinks":
            gone = [t for t in range(24) if not (made.labels[t] == made.actor + 1).any()]
            assert set(gone) <= set(shown)
            assert len(gone) >= len(shown) // 2
        elif not covered:
            (y0, x0), (y1, x1) = (part.mean(axis=0) for part in seen)
            way = {"moves left": x0 - x1, "moves right": x1 - x0, "moves up": y0 - y1, "moves down": y1 - y0}
            if made.event in way:
                assert way[made.event] > 10
            else:
                assert (len(seen[1]) > len(seen[0])) == (made.event == "grows")
        # The sound is loud exactly while the event lasts.
        loud = np.abs(made.sound.samples.reshape(24, -1)).max(axis=1) > 0.1
        assert np.array_equal(loud, made.highlight)
    assert len(events) >= 6


def test_clip_arguments():
    with pytest.raises(BadInput, match="frames"):
        clip(WORLD, 0, frames=3)
    with pytest.raises(BadInput, match="no scene 99"):
        clip(WORLD, 99)
