"""Spaces over tiny random models: what every space must hold, and what each architecture adds."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import chiasm
import tiny_models
from chiasm.encode.model_space import ModelSpace, resample, windows
from chiasm.errors import BadInput, BadItem, UnsupportedModality
from chiasm.items import Item, Sound
from chiasm.space import Space

KINDS = ("clip", "siglip", "clap", "text", "bert")
TEXTS = ["a cat", "the dog and the horse of a man in the snow", "sea", "red red red red green"]


@pytest.fixture(scope="session")
def spaces(
    tiny_clip: Path, tiny_siglip: Path, tiny_clap: Path, tiny_text: Path, tiny_bert: Path
) -> dict[str, ModelSpace]:
    folders = {"clip": tiny_clip, "siglip": tiny_siglip, "clap": tiny_clap, "text": tiny_text, "bert": tiny_bert}
    return {kind: ModelSpace(chiasm.load(str(folder), device="cpu").model, kind) for kind, folder in folders.items()}


def things(space: ModelSpace) -> list:
    """A mixture of everything that a space takes."""
    mixed: list = list(TEXTS)
    if "image" in space.modalities:
        mixed[1:1] = [tiny_models.picture(1), tiny_models.picture(2, (90, 50))]
        mixed.append(Item("video", tiny_models.picture(3), uri="clip.mp4", part="t=1"))
    if not space.speech_as_text:
        mixed[2:2] = [tiny_models.sound(1), tiny_models.sound(2, 0.3, 16000), tiny_models.sound(3, 3.3)]
    return mixed


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_have_unit_length_keep_their_order_and_do_not_depend_on_the_batch(spaces, kind):
    space = spaces[kind]
    assert isinstance(space, Space)
    mixed = things(space)
    together = space.encode(mixed, batch_size=3)
    assert together.vectors.shape == (len(mixed), space.dim)
    assert together.vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together.vectors, axis=1), 1, atol=1e-5)
    assert together.space == space.fingerprint.digest
    for row, thing in enumerate(mixed):
        alone = space.encode([thing])
        np.testing.assert_allclose(alone.vectors[0], together.vectors[row], atol=2e-5)
    order = np.random.default_rng(0).permutation(len(mixed))
    np.testing.assert_allclose(space.encode([mixed[i] for i in order]).vectors, together.vectors[order], atol=2e-5)
    # Not collapsed: different things have different vectors.
    assert np.ptp(together.vectors @ together.vectors.T) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_as_plain_sentence_transformers(spaces, kind):
    space = spaces[kind]
    expected = space.model.encode(TEXTS[:1], normalize_embeddings=True)
    np.testing.assert_allclose(space.encode(TEXTS[:1]).vectors, expected, atol=1e-5)
    if "image" in space.modalities:
        expected = space.model.encode([tiny_models.picture(1)], normalize_embeddings=True)
        np.testing.assert_allclose(space.encode([tiny_models.picture(1)]).vectors, expected, atol=1e-5)
    if kind == "clap":
        one = tiny_models.sound(1)
        expected = space.model.encode([{"array": one.samples, "sampling_rate": one.rate}], normalize_embeddings=True)
        np.testing.assert_allclose(space.encode([one]).vectors, expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_loads_with_plain_sentence_transformers_and_gives_the_same(spaces, kind, tmp_path):
    from sentence_transformers import SentenceTransformer

    space = spaces[kind]
    space.save(tmp_path / "saved")
    plain = ModelSpace(SentenceTransformer(str(tmp_path / "saved"), device="cpu"))
    np.testing.assert_array_equal(plain.encode(things(space)).vectors, space.encode(things(space)).vectors)
    assert plain.fingerprint.digest == space.fingerprint.digest
    assert chiasm.load(str(tmp_path / "saved")).fingerprint.digest == space.fingerprint.digest


@pytest.mark.parametrize("kind", KINDS)
def test_empty_and_repeated_input(spaces, kind):
    space = spaces[kind]
    nothing = space.encode([])
    assert nothing.vectors.shape == (0, space.dim)
    assert nothing.space == space.fingerprint.digest
    assert space.embed([], "text").shape == (0, space.dim)
    twice = space.encode(["a cat", "a cat", "", "a cat"])
    assert len(set(twice.ids)) == 4
    np.testing.assert_allclose(twice.vectors[0], twice.vectors[3], atol=1e-6)


def test_fingerprint_follows_the_weights_and_the_preprocessing_not_the_folder(tiny_clip, tiny_text, tmp_path):
    import shutil

    from chiasm.encode.hub import open_folder

    moved = shutil.copytree(tiny_clip, tmp_path / "another name")
    first, second = ModelSpace(open_folder(tiny_clip, "cpu")), ModelSpace(open_folder(moved, "cpu"))
    before = first.fingerprint
    assert before.digest == second.fingerprint.digest
    first.encode(TEXTS)  # use leaves no trace
    assert first.fingerprint == before
    with torch.no_grad():
        next(second.model.parameters()).view(-1)[0] += 1e-3
    assert second.fingerprint.weights != before.weights
    assert second.fingerprint.preprocessing == before.preprocessing
    third = ModelSpace(open_folder(tiny_clip, "cpu"))
    third.model[0].processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    assert third.fingerprint.preprocessing != before.preprocessing
    assert third.fingerprint.weights == before.weights
    text = ModelSpace(open_folder(tiny_text, "cpu"))
    assert text.fingerprint.digest != before.digest
    plain = text.fingerprint
    text.model.prompts["query"] = "query: "
    assert text.fingerprint.digest != plain.digest


def test_weights_hash_ignores_memory_layout(tiny_clip):
    from chiasm.encode.hub import open_folder
    from chiasm.encode.weights import weights_digest

    model = open_folder(tiny_clip, "cpu")
    before = weights_digest(model)
    assert weights_digest(model.to(memory_format=torch.channels_last)) == before


def test_prompts_follow_the_role(tmp_path):
    folder = tiny_models.write_text(tmp_path / "prompted", prompts={"query": "text query ", "document": ""})
    space = chiasm.load(str(folder), device="cpu")
    query, document = space.encode(["a cat"], role="query"), space.encode(["a cat"], role="document")
    assert np.abs(query.vectors - document.vectors).max() > 1e-3
    np.testing.assert_allclose(query.vectors, space.model.encode_query(["a cat"]), atol=1e-5)
    np.testing.assert_allclose(document.vectors, space.model.encode_document(["a cat"]), atol=1e-5)


def test_texts_that_look_like_addresses_and_files_stay_texts(spaces, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 40), "red").save("a.jpg")
    space = spaces["clip"]
    texts = ["a.jpg", "https://example.org/a.png", "data:image/png;base64,xx"]
    assert space.encode(texts).modality == ["text"] * 3
    picture = space.encode([Image.open("a.jpg")]).vectors[0]
    assert np.abs(space.encode(["a.jpg"]).vectors[0] - picture).max() > 1e-2


@pytest.mark.parametrize("text", ["", " ", "\0", "\ud800", "🦊" * 500, "a" * 5000])
def test_strange_texts_have_vectors(spaces, text):
    for kind in ("clip", "siglip", "text"):
        assert np.isfinite(spaces[kind].encode([text]).vectors).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (1, 4000), (4000, 2), (3, 3)])
def test_strange_shapes_of_pictures_have_vectors(spaces, size):
    for kind in ("clip", "siglip"):
        assert np.isfinite(spaces[kind].encode([Image.new("RGB", size, "blue")]).vectors).all()


def test_modes_and_orientation(spaces, tmp_path):
    space = spaces["clip"]
    whole = tiny_models.picture(5)
    over = whole.convert("RGBA")
    np.testing.assert_allclose(space.encode([over]).vectors, space.encode([whole]).vectors, atol=1e-5)
    exif = Image.Exif()
    exif[0x0112] = 6
    whole.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    turned = space.encode([Image.open(tmp_path / "turned.png")]).vectors
    np.testing.assert_allclose(turned, space.encode([whole]).vectors, atol=1e-5)


def test_video_frames_are_encoded_as_pictures(spaces):
    space, frame = spaces["clip"], tiny_models.picture(8)
    clip = space.encode([Item("video", frame, uri="c.mp4", part="t=0")])
    np.testing.assert_allclose(clip.vectors, space.encode([frame]).vectors, atol=1e-6)


def test_speech_goes_through_its_transcript_only_without_an_audio_encoder(spaces):
    spoken = Item("audio", tiny_models.sound(4), text="a man and a horse")
    assert spaces["clip"].speech_as_text
    assert not spaces["clap"].speech_as_text
    as_text = spaces["clip"].encode(["a man and a horse"]).vectors
    np.testing.assert_allclose(spaces["clip"].encode([spoken]).vectors, as_text, atol=1e-6)
    assert np.abs(spaces["clap"].encode([spoken]).vectors - spaces["clap"].encode([spoken.text]).vectors).max() > 1e-3
    with pytest.raises(BadItem, match="no speech recognized"):
        spaces["clip"].prepare(Item("audio", tiny_models.sound(4), uri="birds.wav"))


def test_sounds_are_resampled(spaces):
    space, t = spaces["clap"], np.arange(8000) / 8000
    low = Sound(np.sin(2 * np.pi * 440 * t).astype(np.float32), 8000)
    t = np.arange(44100) / 44100
    high = Sound(np.sin(2 * np.pi * 440 * t).astype(np.float32), 44100)
    assert len(resample(high, 8000)) == 8000
    assert np.abs(resample(high, 8000)[100:-100] - low.samples[100:-100]).max() < 0.01
    other = Sound(np.sin(2 * np.pi * 2500 * t).astype(np.float32), 44100)
    same, different = space.encode([low, high, other]).vectors[1:] @ space.encode([low]).vectors[0]
    assert same > different
    assert same > 0.999


def test_long_sounds_are_heard_in_even_windows_without_chance(spaces, tmp_path):
    samples = np.arange(100, dtype=np.float32)
    assert [w[0] for w in windows(samples, 30)] == [0, 23, 46, 70]
    assert windows(samples, 100)[0] is samples
    assert len(windows(np.zeros(10_000), 30)) == 6
    long = tiny_models.sound(6, seconds=5.0)
    np.testing.assert_array_equal(spaces["clap"].encode([long]).vectors, spaces["clap"].encode([long]).vectors)
    fused = chiasm.load(str(tiny_models.write_clap(tmp_path / "fused", fusion=True)), device="cpu")
    short = [tiny_models.sound(i, 0.4) for i in range(3)]
    alone = np.concatenate([fused.encode([s]).vectors for s in short])
    np.testing.assert_allclose(fused.encode([*short, long]).vectors[:3], alone, atol=2e-5)


@pytest.mark.parametrize(
    "bad",
    [
        Item("audio", Sound(np.zeros(0, np.float32), 8000), uri="x"),
        Item("audio", Sound(np.full(10, np.nan, np.float32), 8000), uri="x"),
        Item("audio", "not a sound", uri="x"),
        Item("text", 3, uri="x"),
    ],
)
def test_broken_content_is_a_bad_item(spaces, bad):
    with pytest.raises(BadItem, match=r"^x: "):
        spaces["clap"].prepare(bad)


def test_unsupported_modality_says_what_it_can(spaces):
    with pytest.raises(UnsupportedModality, match=r"no encoder for image.*text, audio"):
        spaces["clap"].encode([tiny_models.picture()])
    with pytest.raises(UnsupportedModality):
        spaces["text"].embed([None], "video")
    with pytest.raises(BadInput, match="one string"):
        spaces["text"].encode("a cat")
    with pytest.raises(BadInput, match="batch_size"):
        spaces["text"].encode(["a cat"], batch_size=0)


def test_tokens_of_text_models(spaces):
    space = spaces["text"]
    found = space.encode(TEXTS, tokens=True, batch_size=2)
    assert found.tokens is not None
    assert found.mask is not None
    assert found.tokens.shape == (4, found.mask.shape[1], space.dim)
    assert not found.tokens[~found.mask].any()
    np.testing.assert_allclose(np.linalg.norm(found.tokens[found.mask], axis=1), 1, atol=1e-5)
    # [CLS] and [SEP] and one token per word
    np.testing.assert_array_equal(found.mask.sum(1), [len(t.split()) + 2 for t in TEXTS])
    np.testing.assert_allclose(found.vectors, space.encode(TEXTS).vectors, atol=1e-6)
    alone = space.encode(TEXTS[1:2], tokens=True)
    assert alone.tokens is not None
    np.testing.assert_allclose(alone.tokens[0], found.tokens[1][found.mask[1]], atol=2e-5)


def test_tokens_of_clip_lie_in_the_space_of_its_vectors(spaces):
    space = spaces["clip"]
    text = space.encode(["a cat"], tokens=True)
    assert text.tokens is not None
    assert text.mask is not None
    # CLIP pools the last token, so its projected token is the text's vector.
    np.testing.assert_allclose(text.tokens[0][text.mask[0]][-1], text.vectors[0], atol=1e-5)
    mixed = space.encode([tiny_models.picture(1), "a cat"], tokens=True)
    assert mixed.mask is not None
    assert mixed.mask.sum(1).tolist() == [16, text.mask.sum()]  # 32 x 32 pixels in patches of 8


def test_the_projection_of_clips_patches_is_that_of_its_class_token(spaces):
    space = spaces["clip"]
    features = space.prepare(Item.of(tiny_models.picture(1)))
    network = space.model[0].model
    with torch.inference_mode():
        hidden = network.vision_model(features["pixel_values"]).last_hidden_state
        pooled = network.visual_projection(network.vision_model.post_layernorm(hidden[:, 0]))
    vector = torch.nn.functional.normalize(pooled, dim=-1).numpy()[0]
    np.testing.assert_allclose(vector, space.encode([tiny_models.picture(1)]).vectors[0], atol=1e-5)


def test_siglip_gives_patches_and_clap_no_audio_tokens(spaces):
    found = spaces["siglip"].encode([tiny_models.picture(1), "a cat"], tokens=True)
    assert found.mask is not None
    assert found.mask.sum(1).tolist() == [16, 4]
    with pytest.raises(UnsupportedModality, match="no token vectors for audio"):
        spaces["clap"].encode([tiny_models.sound(1)], tokens=True)


def test_encoding_does_not_change_the_mode_of_training(spaces):
    model = spaces["text"].model
    model.train()
    model[1].eval()  # a frozen part
    first = spaces["text"].encode(TEXTS).vectors
    assert model.training
    assert model[0].training
    assert not model[1].training
    model.eval()
    np.testing.assert_array_equal(first, spaces["text"].encode(TEXTS).vectors)


def test_threads_may_encode_at_the_same_time(spaces):
    space = spaces["clip"]
    expected = space.encode(things(space)).vectors
    found: list = []
    threads = [threading.Thread(target=lambda: found.append(space.encode(things(space)).vectors)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    for one in found:
        np.testing.assert_allclose(one, expected, atol=2e-5)


def test_generators_progress_and_inputs_left_alone(spaces):
    space, told = spaces["clip"], []
    picture = tiny_models.picture(1)
    before = picture.tobytes()
    found = space.encode((thing for thing in [picture, *TEXTS]), progress=lambda *args: told.append(args), batch_size=2)
    assert len(found) == 5
    assert told[-1] == (5, None)
    assert picture.tobytes() == before
    assert len(space.encode(["a"] * 2500, batch_size=500)) == 2500  # more than one window


def test_a_hook_for_preparing_is_used(spaces):
    """A route may offer `prepare_one`; its results reach `preprocess` as a list."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import InputModule, Router

    class Mean(InputModule):
        modalities = ["image"]  # noqa: RUF012

        def __init__(self):
            super().__init__()
            self.calls = 0

        def prepare_one(self, picture):
            self.calls += 1
            return np.asarray(picture.resize((2, 2)), np.float32)

        def preprocess(self, inputs, prompt=None, **kwargs):
            return {"pixels": torch.from_numpy(np.stack(inputs))}

        def forward(self, features, **kwargs):
            flat = features["pixels"].flatten(1)
            features["sentence_embedding"] = torch.nn.functional.pad(flat, (0, 4)) + 1
            return features

        def save(self, *args, **kwargs): ...

    hook = Mean()
    text = spaces["text"].model
    model = SentenceTransformer(modules=[Router({"text": list(text.children()), "image": [hook]})], device="cpu")
    space = ModelSpace(model, "hooked")
    found = space.encode(["a cat", *(tiny_models.picture(i) for i in range(11))])
    assert hook.calls == 11
    np.testing.assert_allclose(found.vectors[0], spaces["text"].encode(["a cat"]).vectors[0], atol=1e-5)
    pixels = np.asarray(tiny_models.picture(3).resize((2, 2)), np.float32).ravel()
    expected = np.concatenate([pixels, np.zeros(4)]) + 1
    np.testing.assert_allclose(found.vectors[4], expected / np.linalg.norm(expected), atol=1e-5)
