"""The mini dual encoder: a real CLIP model that learns, is cached, and reads what it is given."""

from __future__ import annotations

import numpy as np
import pytest

from chiasm.errors import BadInput
from chiasm.worlds import make_scenes
from chiasm.worlds.captions import captions
from chiasm.worlds.mini import MiniSettings, load, mini_clip, word_tokenizer
from chiasm.worlds.vocabulary import LANGUAGES

TINY = MiniSettings(
    vision_width=32,
    vision_layers=1,
    vision_mlp=32,
    text_width=32,
    text_layers=1,
    text_mlp=32,
    dim=16,
    patch=16,
    scenes=128,
    single=128,
    single_epochs=3,
    epochs=1,
    batch=32,
    rate=3e-3,
)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_tokenizer_knows_every_word_and_keeps_their_order(language):
    tokenizer = word_tokenizer([language])
    for scene in make_scenes(30):
        for caption in captions(scene, language):
            ids = tokenizer(caption.text)["input_ids"]
            assert ids[0] == 1
            assert ids[-1] == 3
            assert 2 not in ids  # no unknown word
            assert len(ids) <= 48
    assert tokenizer("a spaceship")["input_ids"].count(2) == 1


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def mini(cache):
    seen = []
    made = mini_clip(settings=TINY, cache=cache, progress=seen.append)
    assert seen[-1] == 1.0
    return made


def test_it_learns_and_says_how_it_was_made(mini):
    assert mini.report["loss"][2] < mini.report["loss"][0]
    assert mini.report["settings"]["dim"] == 16
    for split in ("held_out", "unseen_pairs"):
        assert all(0 <= value <= 1 for value in mini.report[split].values())


def test_the_cache_gives_the_same_model_without_training(mini, cache):
    def fail(share):
        raise AssertionError("trained again")

    again = mini_clip(settings=TINY, cache=cache, progress=fail)
    pictures = make_scenes(5, seed=9).pictures()
    assert np.array_equal(again.encode_pictures(pictures), mini.encode_pictures(pictures))
    assert len(list((cache / "worlds").iterdir())) == 1
    with pytest.raises(BadInput, match="no mini dual encoder"):
        load(cache)


def test_vectors_have_unit_length_and_do_not_depend_on_their_batch(mini):
    texts = ["a red circle", "a large striped blue star and two small green hearts"]
    together = mini.encode_texts(texts)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(mini.encode_texts(texts[:1]), together[:1], atol=1e-5)  # padding changes nothing
    pictures = make_scenes(7, seed=1).pictures()
    np.testing.assert_allclose(mini.encode_pictures(pictures, batch_size=3), mini.encode_pictures(pictures), atol=1e-5)
    assert mini.encode_texts([]).shape == (0, 16)
    assert mini.model.__class__.__name__ == "CLIPModel"
    assert not mini.model.training


def test_nothing_to_train_on_is_said(cache):
    with pytest.raises(BadInput, match="nothing to train"):
        mini_clip(settings=MiniSettings(scenes=3, single=3), cache=cache)
