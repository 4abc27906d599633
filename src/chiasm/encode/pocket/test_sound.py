"""The pocket space's ear: what it takes, what it leaves alone, and that it hears."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import chiasm
from chiasm.encode.model_space import ModelSpace
from chiasm.encode.pocket import build
from chiasm.encode.pocket.sound import FEATURES, MELS, MOST, RATE, WINDOW, PocketSound, log_mel, trained
from chiasm.encode.weights import grown_digest, grown_parts
from chiasm.errors import BadInput, BadItem
from chiasm.items import Item, Sound

needs_weights = pytest.mark.skipif(not trained(), reason="make pocket-sound has not been run")


def noise(seconds: float = 2.0, rate: int = RATE, seed: int = 0) -> Sound:
    rng = np.random.default_rng(seed)
    return Sound((0.1 * rng.standard_normal(round(seconds * rate))).astype(np.float32), rate)


def tone(hertz: float, rate: int = RATE, seconds: float = 1.0) -> Sound:
    return Sound(np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate).astype(np.float32), rate)


@pytest.fixture(scope="module")
def module() -> PocketSound:
    torch.manual_seed(0)
    return PocketSound(384).eval()


@pytest.fixture(scope="module")
def space() -> ModelSpace:
    return chiasm.load("pocket", device="cpu")


def test_log_mel_has_its_peak_where_the_tone_is() -> None:
    from transformers.audio_utils import hertz_to_mel

    low, high = hertz_to_mel(30.0, "htk"), hertz_to_mel(8000.0, "htk")
    for hertz in (500.0, 2000.0, 6000.0):
        mel = log_mel(tone(hertz).samples)
        band = (hertz_to_mel(hertz, "htk") - low) / (high - low) * (MELS + 1) - 1
        assert abs(mel.mean(1).argmax() - band) <= 1
        assert mel.max() > mel.mean() + 20


def test_pictures_cover_a_recording_of_any_length(module: PocketSound) -> None:
    assert module.prepare_one(noise(0.01)).shape == (1, MELS, WINDOW)
    assert module.prepare_one(noise(2.25)).shape[0] == 1
    assert module.prepare_one(noise(5.0)).shape[0] == 4
    assert module.prepare_one(noise(30.0)).shape[0] == MOST
    short = module.prepare_one(noise(0.5))
    assert short.max() == 0
    assert short[:, :, 60:].max() == -80  # after its end there is silence


def test_loudness_and_rate_hardly_matter(module: PocketSound) -> None:
    sound = noise(2.0)
    quiet = Sound(sound.samples / 50, RATE)
    assert np.abs(module.prepare_one(sound) - module.prepare_one(quiet)).max() < 0.5
    slow, fast = (module.prepare_one(tone(1000, rate)) for rate in (RATE, 44_100))
    assert np.abs(slow[0].argmax(0)[:80] - fast[0].argmax(0)[:80]).max() <= 1


def test_input_is_left_alone_and_threads_agree(module: PocketSound) -> None:
    sound = noise(3.0)
    before = sound.samples.copy()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(module.prepare_one, [sound] * 8))
    assert all(np.array_equal(found[0], one) for one in found)
    assert np.array_equal(sound.samples, before)


def test_vectors_are_of_unit_length_and_independent_of_neighbors(module: PocketSound) -> None:
    sounds = [noise(1.0, seed=1), noise(5.0, seed=2)]
    with torch.inference_mode():
        both = module(module.preprocess(sounds))
        alone = [module(module.preprocess([sound]))["sentence_embedding"] for sound in sounds]
    assert both["input_features"].shape == (2, 4, FEATURES)
    assert torch.isfinite(both["sentence_embedding"]).all()
    torch.testing.assert_close(both["sentence_embedding"], torch.cat(alone), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(both["sentence_embedding"].norm(dim=1), torch.ones(2))


def test_what_cannot_be_heard_is_refused(module: PocketSound) -> None:
    with pytest.raises(ValueError, match="nothing can be heard"):
        module.prepare_one(Sound(np.zeros(RATE, np.float32), RATE))
    with pytest.raises(BadInput, match="cannot take a str"):
        module.preprocess(["bark.wav"])


@needs_weights
def test_pictures_and_texts_are_bit_for_bit_what_they_were(space: ModelSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.setattr("chiasm.encode.pocket.sound.trained", lambda: False)
    before = ModelSpace(build("cpu"), "pocket", revision=space.fingerprint.revision)
    assert "audio" in space.model.modalities
    assert "audio" not in before.model.modalities
    things = [Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)), "a dog", "rain"]
    assert np.array_equal(before.encode(things).vectors, space.encode(things).vectors)
    # Old stores stay in use, because the digest stays the same; caches know the difference.
    assert before.fingerprint.digest == space.fingerprint.digest
    assert before.grown == ""
    assert len(space.grown) == 12
    assert grown_parts(space.model) == ("0.sub_modules.audio.0",)


@needs_weights
def test_the_cache_follows_the_sound_weights(space: ModelSpace) -> None:
    before, digest = space.grown, space.fingerprint.digest
    head = dict(space.model.named_parameters())["0.sub_modules.audio.0.align.0.bias"]
    kept = head.detach().clone()
    with torch.no_grad():
        head.add_(1)
        assert grown_digest(space.model) != before
        assert space.fingerprint.digest == digest
        head.copy_(kept)
    assert space.grown == before


@needs_weights
def test_speech_goes_by_its_transcript_and_other_sound_by_its_sound(space: ModelSpace) -> None:
    assert space.speech_as_text
    spoken = Item("audio", noise(seed=3), text="the rent is due on friday")
    heard = Item("audio", noise(seed=3))
    vectors = space.encode([spoken, heard, spoken]).vectors
    said = space.encode([spoken.text]).vectors[0]
    np.testing.assert_allclose(vectors[0], said, atol=1e-6)
    np.testing.assert_allclose(vectors[2], said, atol=1e-6)
    assert vectors[1] @ said < 0.9
    np.testing.assert_allclose(vectors[1], space.encode([heard]).vectors[0], atol=1e-5)
    with pytest.raises(BadItem, match="nothing can be heard"):
        space.prepare(Item("audio", Sound(np.zeros(RATE, np.float32), RATE), uri="silence.wav"))


@needs_weights
def test_saved_and_loaded_it_hears_the_same(space: ModelSpace, tmp_path) -> None:
    space.save(tmp_path / "pocket")
    loaded = chiasm.load(str(tmp_path / "pocket"), device="cpu")
    items = [Item("audio", noise(seed=4)), Item("audio", tone(440))]
    assert np.array_equal(loaded.encode(items).vectors, space.encode(items).vectors)
    assert loaded.fingerprint.digest == space.fingerprint.digest


@needs_weights
def test_steady_noise_is_nearer_to_rain_than_to_a_dog(space: ModelSpace) -> None:
    """Rain is nearly white noise; the training has no generated sound."""
    heard = space.encode([Item("audio", noise(5.0, seed=s)) for s in range(3)]).vectors
    rain, dog, rooster = space.encode(["rain", "a dog barking", "a rooster crowing"]).vectors
    assert (heard @ rain).min() > (heard @ dog).max()
    assert (heard @ rain).min() > (heard @ rooster).max()
