"""The worlds of adapting are what they say: seeds, sizes, and who is known."""

import numpy as np
import torch

from chiasm.worlds.mini import MiniSettings, mini_clip
from chiasm.worlds.shifted_shapes import SMALL, make_domain
from chiasm.worlds.unknown_classes import compositions, directions, latent, sentence_model


def test_directions_lie_about_their_labels():
    task = directions(3)
    assert ((task.inside @ task.texts.T).argmax(axis=1) == task.labels).mean() > 0.8
    near, unforeseen = (
        (task.outside[name] @ task.negatives.T).max(axis=1).mean() for name in ("near the negatives", "unforeseen")
    )
    assert near > unforeseen
    assert np.array_equal(directions(3).inside, task.inside)
    assert not np.array_equal(directions(4).inside, task.inside)


def test_latent_classes_are_told_apart_by_their_pictures():
    world = latent(1, each=6)
    assert world.pictures.shape == (96 * 6, 48)
    assert world.texts.shape == (96, 48)
    assert len(world.tests) == len(world.strangers) == 16 * 12
    means = np.stack([world.tuning[world.tuning_labels == c].mean(axis=0) for c in range(16)])
    nearest = np.linalg.norm(world.tests[:, None] - means, axis=2).argmin(axis=1)
    assert (nearest == world.test_labels).mean() > 0.4  # chance is 0.06


def test_shapes_in_a_shifted_domain(tmp_path):
    mini = mini_clip(settings=SMALL, cache=tmp_path)
    assert isinstance(SMALL, MiniSettings)
    domain = make_domain(mini, 5, classes=8, shots=2, tests=3, scenes=1024)
    assert len(domain.base) == len(domain.novel) == 4
    assert not set(domain.base) & set(domain.novel)
    assert domain.shots[0].shape == (8, 3, 64, 64)
    assert np.bincount(domain.novel_test[1]).tolist() == [3, 3, 3, 3]
    plain = make_domain(mini, 5, classes=8, shots=2, tests=3, scenes=1024, invert=0.0, clutter=0)
    assert plain.base == domain.base
    assert not torch.equal(plain.shots[0], domain.shots[0])
    inverted = make_domain(mini, 5, classes=8, shots=2, tests=3, scenes=1024, invert=1.0, clutter=0)
    torch.testing.assert_close(inverted.shots[0], -plain.shots[0], atol=1e-4, rtol=0)


def test_compositions_do_not_overlap_and_the_encoder_becomes_a_sentence_model(tmp_path):
    mini = mini_clip(settings=SMALL, cache=tmp_path)
    world = compositions(mini, 2, each=2, tests=2, scenes=1024)
    assert len({*world.classes, *world.negatives, *world.near}) == 64
    assert world.tuning[0].shape == (32, 3, 64, 64)
    assert world.outside["far"].shape == (32, 3, 64, 64)
    model = sentence_model(mini)
    own = mini.encode_texts(["a red circle"])
    np.testing.assert_allclose(model.encode(["a red circle"], normalize_embeddings=True), own, atol=1e-5)
