"""Identities of splitting, reduction, fusion and decoding; the model's settings; the segmenter; hostile input."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from chiasm.adapt.descriptions import describe
from chiasm.errors import BadInput, StoreError, UnknownName
from chiasm.perceive.mm_prototypes import (
    Clues,
    ComplementaryFusion,
    ConvEncoder,
    ElasticDecoder,
    MultiModalPrototypes,
    PrototypeSegmenter,
    dice_loss,
    k_medoids,
    masked_average,
    reduce_similarities,
    split_mask,
    textual_prototypes,
    to_grid,
    visual_prototypes,
)

F, T, D = 12, 10, 16


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small(**options):
    torch.manual_seed(0)
    return MultiModalPrototypes(F, T, width=D, heads=2, channels=8, background=2, **options).eval()


def blob(count, side=8, seed=0):
    """A mask of so many pixels."""
    mask = torch.zeros(side * side)
    mask[torch.randperm(side * side, generator=torch.Generator().manual_seed(seed))[:count]] = 1
    return mask.reshape(side, side)


# ---- splitting


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 64), regions=st.integers(1, 9), seed=st.integers(0, 99), weight=st.sampled_from([0.0, 1.0]))
def test_regions_are_disjoint_cover_the_mask_and_have_equal_areas(count, regions, seed, weight):
    mask, features = blob(count, seed=seed), noise(5, 8, 8, seed=seed)
    owner = split_mask(mask, features, regions, feature_weight=weight)
    assert torch.equal(owner >= 0, mask > 0)
    areas = torch.bincount(owner[owner >= 0])
    assert len(areas) == min(count, regions)
    assert int(areas.max() - areas.min()) <= (count % regions != 0)


def test_areas_differ_by_a_pixel_for_every_number_of_regions():
    for regions, more in pairwise(range(1, 8)):
        sizes = torch.bincount(split_mask(torch.ones(9, 7), noise(3, 9, 7), regions).flatten())
        assert int(sizes.max() - sizes.min()) <= 1
        assert len(sizes) == regions < more


@settings(max_examples=25, deadline=None)
@given(count=st.integers(5, 64), regions=st.integers(1, 5), seed=st.integers(0, 99))
@pytest.mark.parametrize("rule", ["median", "kmeans", "farthest"])
def test_the_area_weighted_mean_of_the_prototypes_is_masked_average_pooling(rule, count, regions, seed):
    mask = blob(count, seed=seed) * torch.rand(8, 8, generator=torch.Generator().manual_seed(seed)).clamp(min=0.1)
    features = noise(5, 8, 8, seed=seed)
    owner = split_mask(mask, features, regions, rule=rule)
    area = torch.zeros(regions).index_add(0, owner[owner >= 0], mask[owner >= 0])
    rows = visual_prototypes(features, mask, regions, rule=rule)
    torch.testing.assert_close((rows * area[:, None]).sum(0) / area.sum(), masked_average(features, mask))


@pytest.mark.parametrize("rule", ["median", "kmeans", "farthest"])
def test_one_region_is_masked_average_pooling_and_too_few_pixels_repeat_the_mean(rule):
    mask, features = blob(3), noise(5, 8, 8)
    mean = masked_average(features, mask)
    torch.testing.assert_close(visual_prototypes(features, mask, 1, rule=rule)[0], mean)
    torch.testing.assert_close(visual_prototypes(features, mask, 4, rule=rule), mean.expand(4, -1))


def test_two_halves_of_two_colors_are_told_apart():
    features = torch.zeros(2, 8, 8)
    features[0, :4], features[1, 4:] = 1.0, 1.0
    found = visual_prototypes(features, torch.ones(8, 8), 2)
    assert sorted(found.tolist()) == [[0.0, 1.0], [1.0, 0.0]]


def test_features_decide_where_geometry_cannot():
    """A checkerboard of two features: halves by geometry hold both, halves by features one each."""
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    features = torch.stack([((x + y) % 2 == k).float() for k in (0, 1)])
    plain = visual_prototypes(features, torch.ones(8, 8), 2, feature_weight=0.0)
    torch.testing.assert_close(plain, torch.full((2, 2), 0.5))
    assert sorted(visual_prototypes(features, torch.ones(8, 8), 2, feature_weight=3.0).tolist()) == [[0, 1], [1, 0]]
    assert sorted(visual_prototypes(features, torch.ones(8, 8), 2, rule="kmeans").tolist()) == [[0, 1], [1, 0]]


def test_a_thin_line_keeps_its_share_on_a_coarse_grid():
    mask = torch.zeros(64, 64)
    mask[20] = 1
    cover = to_grid(mask, (8, 8))
    assert float(cover.max()) == pytest.approx(1 / 8)
    assert float(cover.mean()) == pytest.approx(float(mask.mean()))
    owner = split_mask(cover, None, 4, feature_weight=0.0)
    assert torch.bincount(owner[owner >= 0]).tolist() == [2, 2, 2, 2]
    assert tuple(to_grid(torch.ones(2, 3, 4, 4), (8, 8)).shape) == (2, 3, 8, 8)


def test_splitting_does_not_depend_on_noise_of_rounding_or_mutate():
    mask, features = torch.ones(6, 6), torch.ones(3, 6, 6)
    kept = mask.clone()
    first = split_mask(mask, features, 3)
    assert torch.equal(first, split_mask(mask, features * 1.0000001, 3))
    assert torch.equal(mask, kept)


def test_medoids_are_rows_of_their_clusters():
    centers = functional.normalize(noise(3, 6), dim=1)
    rows = torch.cat([c + 0.01 * noise(10, 6, seed=k) for k, c in enumerate(centers)])
    chosen = k_medoids(rows, 3)
    assert (chosen // 10).tolist() == [0, 1, 2]
    assert k_medoids(rows, 99).tolist() == list(range(30))
    copies = k_medoids(torch.ones(5, 2), 3)
    assert len(set(copies.tolist())) == 3


# ---- reduction


def test_logmeanexp_by_hand():
    found = reduce_similarities(torch.tensor([[[0.0, 0.0], [0.0, math.log(3)]]])).channels[0]
    assert found[1].tolist() == pytest.approx([0.0, math.log(2)])
    assert found[0].tolist() == pytest.approx([0.0, math.log(3)])
    # softmax of (0, ln 3) is (1/4, 3/4)
    assert found[2].tolist() == pytest.approx([0.0, 0.75 * math.log(3)])


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 7), seed=st.integers(0, 999))
def test_order_copies_and_missing_prototypes_change_nothing(count, seed):
    s = 5 * noise(2, 3, count, 4, seed=seed)
    whole = reduce_similarities(s).channels
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(reduce_similarities(s[:, :, order]).channels, whole)
    torch.testing.assert_close(reduce_similarities(torch.cat([s, s], dim=2)).channels, whole)
    padded = torch.cat([s, 100 + torch.zeros(2, 3, 2, 4)], dim=2)
    mask = torch.arange(count + 2).expand(2, 3, -1) < count
    torch.testing.assert_close(reduce_similarities(padded, mask).channels, whole)


def test_of_one_prototype_all_three_channels_are_its_similarity():
    s = noise(2, 3, 1, 4)
    torch.testing.assert_close(reduce_similarities(s).channels, s.expand(-1, -1, 3, -1))


def test_a_class_without_prototypes_is_no_nan_even_in_the_gradient():
    s = noise(1, 2, 3, 4).requires_grad_()
    mask = torch.tensor([[[True, True, False], [False, False, False]]])
    found = reduce_similarities(s, mask)
    assert found.channels[0, 1].eq(0).all()
    found.channels.sum().backward()
    assert torch.isfinite(s.grad).all()
    assert s.grad[0, 1].eq(0).all()


# ---- decoder and model


def test_the_decoder_is_blind_to_order_copies_chunks_and_other_classes():
    torch.manual_seed(0)
    decoder = ElasticDecoder(D, 8).eval()
    features, rows = noise(2, D, 5, 5), noise(2, 3, 4, D, seed=1)
    whole = decoder(features, rows)
    assert tuple(whole.shape) == (2, 3, 20, 20)
    torch.testing.assert_close(decoder(features, rows[:, :, [2, 0, 3, 1]]), whole)
    torch.testing.assert_close(decoder(features, torch.cat([rows, rows], dim=2)), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(decoder(features, rows, chunk=1), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(decoder(features, rows[:, 1:2])[:, 0], whole[:, 1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(decoder(features[:1], rows[:1]), whole[:1], rtol=1e-4, atol=1e-4)


def test_the_decoder_with_one_channel_only_ignores_the_others():
    torch.manual_seed(0)
    decoder = ElasticDecoder(D, 8, use=("logmeanexp",))
    assert decoder.get_buffer("used").tolist() == [False, True, False]
    # A prototype more that equals the mean of what is there cannot be seen by logmeanexp of one equal value.
    rows = noise(1, 1, 1, D)
    torch.testing.assert_close(decoder(noise(1, D, 4, 4), rows), decoder(noise(1, D, 4, 4), rows.expand(1, 1, 5, D)))


def test_fusion_skips_what_is_missing_and_classes_do_not_see_each_other():
    torch.manual_seed(0)
    fusion = ComplementaryFusion(D, 2, 2).eval()
    text, visual = noise(3, 2, D), noise(3, 4, D, seed=1)
    all_text, all_visual = torch.ones(3, 2, dtype=torch.bool), torch.ones(3, 4, dtype=torch.bool)
    t, v = fusion(text, all_text, visual, all_visual)
    one = fusion(text[:1], all_text[:1], visual[:1], all_visual[:1])
    torch.testing.assert_close(one[0], t[:1])
    torch.testing.assert_close(one[1], v[:1])
    # A mask of nothing is the same as no tokens.
    masked = fusion(text, all_text, visual, torch.zeros_like(all_visual))[0]
    absent = fusion(text, all_text, visual[:, :0], all_visual[:, :0])[0]
    torch.testing.assert_close(masked, absent)
    assert not torch.allclose(absent, t)
    # Padding has no influence.
    padded = torch.cat([visual, 50 + torch.zeros(3, 2, D)], dim=1)
    mask = torch.cat([all_visual, torch.zeros(3, 2, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(fusion(text, all_text, padded, mask)[0], t)


def test_without_pictures_no_visual_parameter_of_the_clues_gets_a_gradient_and_the_reverse():
    model = small()
    features, text, visual = noise(2, F, 4, 4), noise(2, 3, 2, T, seed=1), noise(2, 3, 4, F, seed=2)

    def touched(clues):
        model.zero_grad()
        out, mask = model.prototypes(clues)
        (out[mask] * noise(*out[mask].shape, seed=3)).sum().backward()
        return {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().max() > 0)}

    of_text, of_visual = touched(Clues(text=text)), touched(Clues(visual=visual))
    assert "text_projection.weight" in of_text
    assert not any("visual" in name for name in of_text)
    assert "visual_projection.weight" in of_visual
    assert not any(name.startswith("text_projection") or ".text." in name for name in of_visual)
    nothing = Clues(text, visual, visual_mask=torch.zeros(2, 3, 4, dtype=torch.bool))
    torch.testing.assert_close(model(features, nothing), model(features, Clues(text=text)))


def test_no_feature_level_or_scale_of_a_clue_matters():
    model = small()
    features, visual = noise(1, F, 4, 4), noise(1, 2, 3, F, seed=2)
    torch.testing.assert_close(
        model(features, Clues(visual=7 * visual)), model(features, Clues(visual=visual)), rtol=1e-4, atol=1e-4
    )


def test_a_class_without_clues_leaves_the_others_probabilities_as_they_are():
    model = small()
    features, text = noise(1, F, 4, 4), noise(1, 3, 2, T, seed=1)
    mask = torch.tensor([[[True, True], [True, True], [False, False]]])
    with_it = model(features, Clues(text=text, text_mask=mask))
    assert with_it[:, 3].isneginf().all()
    torch.testing.assert_close(
        with_it.softmax(1)[:, :3], model(features, Clues(text=text[:, :2])).softmax(1), rtol=1e-4, atol=1e-5
    )


def test_one_class_is_a_sigmoid_against_the_background():
    logits = small()(noise(1, F, 4, 4), Clues(text=noise(1, 1, 2, T, seed=1)))
    torch.testing.assert_close(logits.softmax(1)[:, 1], (logits[:, 1] - logits[:, 0]).sigmoid())


def test_losses_by_hand_and_their_gradients():
    shares, truth = torch.tensor([[[[0.5, 0.5]]]]), torch.tensor([[[[1.0, 0.0]]]])
    assert float(dice_loss(shares, truth)) == pytest.approx(1 - (1 + 1) / (1 + 1 + 1))
    assert float(dice_loss(truth, truth)) == 0.0
    model = small().train()
    labels = torch.randint(0, 4, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    clues = Clues(noise(2, 3, 2, T, seed=1), noise(2, 3, 4, F, seed=2), noise(2, 5, F, seed=3))
    parts = model.losses(noise(2, F, 4, 4), clues, labels)
    assert set(parts) == {"cross_entropy", "dice", "separation"}
    torch.stack(list(parts.values())).sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    with torch.no_grad():
        ignored = model.losses(noise(2, F, 4, 4), clues, torch.full_like(labels, 255))
        assert float(ignored["cross_entropy"]) == 0
        assert float(ignored["separation"]) == 0
        model.eval().on_progress(0, 100)
        assert float(model.losses(noise(2, F, 4, 4), clues, labels)["separation"]) == 0
        model.on_progress(100, 100)
        assert float(model.losses(noise(2, F, 4, 4), clues, labels)["separation"]) > 0


def test_pixels_that_do_not_count_get_no_gradient():
    model = small(separation=0.0, dice=0.0)
    labels = torch.full((1, 4, 4), 255)
    labels[0, 0, 0] = 1
    clues = Clues(text=noise(1, 1, 2, T, seed=1))
    first = model.losses(noise(1, F, 4, 4), clues, labels)["cross_entropy"]
    logits = functional.interpolate(model(noise(1, F, 4, 4), clues), size=(4, 4), mode="bilinear")
    torch.testing.assert_close(first, -logits.log_softmax(1)[0, 1, 0, 0])


def test_training_drops_modalities_episode_by_episode_and_evaluation_does_not():
    model = small(drop_visual=0.5, drop_text=0.5)
    clues = Clues(noise(40, 2, 2, T, seed=1), noise(40, 2, 3, F, seed=2), noise(40, 4, F, seed=3))
    assert model._dropped(clues) is clues
    model.train()
    torch.manual_seed(0)
    found = model._dropped(clues)
    has_text, has_visual = found.text_mask.flatten(1), found.visual_mask.flatten(1)
    assert torch.equal(has_text.any(1), has_text.all(1))
    assert torch.equal(has_text.any(1), ~has_visual.any(1))
    assert torch.equal(found.background_mask.any(1), has_visual.any(1))
    assert 5 < int(has_text.any(1).sum()) < 35


def test_an_episode_keeps_what_its_classes_cannot_do_without():
    model = small(drop_visual=1.0, drop_text=0.0).train()
    there = torch.tensor([[[True, True], [False, False]], [[True, False], [True, True]]])
    found = model._dropped(Clues(noise(2, 2, 2, T), noise(2, 2, 3, F), text_mask=there))
    assert torch.equal(found.text_mask, there)
    assert found.visual_mask[0].all()
    assert not found.visual_mask[1].any()


def test_similarity_maps_are_cosines_and_missing_prototypes_are_marked():
    model = small(layers=0)
    visual = noise(1, 2, 3, F, seed=2)
    mask = torch.tensor([[[True, True, True], [True, False, True]]])
    # Without fusion, a picture that shows a prototype itself has the cosine 1 with it.
    features = visual[0, 1, 2][None, :, None, None].expand(1, F, 4, 4)
    found = model.similarities(features, Clues(visual=visual, visual_mask=mask))
    assert tuple(found.shape) == (1, 2, 3, 4, 4)
    torch.testing.assert_close(found[0, 1, 2], torch.ones(4, 4))
    assert found[0, 1, 1].isnan().all()
    assert float(found[0, 0].detach().abs().max()) <= 1 + 1e-5


@pytest.mark.parametrize(
    "options",
    [{"layers": -1}, {"drop_visual": 0.7, "drop_text": 0.7}, {"warmup": 2.0}, {"background": 0}, {"use": ("mean",)},
     {"heads": 3}, {"temperature": 0.0}],
)  # fmt: skip
def test_settings_that_make_no_model(options):
    with pytest.raises(BadInput):
        MultiModalPrototypes(F, T, **{"width": D, "heads": 2, **options})


# ---- words


def test_texts_are_means_over_templates_and_one_row_an_aspect():
    calls = []

    def encode(sentences):
        calls.append(list(sentences))
        return np.array([[len(s), s.count("red"), 1.0] for s in sentences])

    found = describe(["cat", "my_mug"], {"cat": {"shape": ["round"], "definition": ["a pet", "a red thing"]}})
    rows, there = textual_prototypes(encode, found, name_templates=("{}",), sentence_templates=("{sentence}",))
    assert calls == [["cat", "a pet", "a red thing", "round", "my mug"]]
    assert there.tolist() == [[True, True, True], [True, False, False]]

    def unit(*v):
        return functional.normalize(torch.tensor(v, dtype=torch.float32), dim=-1)

    torch.testing.assert_close(rows[0, 1], unit(*(unit(5, 0, 1) + unit(11, 1, 1)).tolist()))
    torch.testing.assert_close(rows[0, 2], unit(5, 0, 1))
    assert rows[1, 1:].eq(0).all()
    assert textual_prototypes(encode, found, aspects=())[0].shape == (2, 1, 3)
    with pytest.raises(BadInput, match="aspect 'taste'"):
        textual_prototypes(encode, found, aspects=["taste"])
    with pytest.raises(BadInput, match="name templates"):
        textual_prototypes(encode, found, name_templates=("a cat",))
    with pytest.raises(BadInput, match="one finite vector"):
        textual_prototypes(lambda s: np.full((len(s), 2), np.nan), found)


# ---- the segmenter


def segmenter(**options):
    return PrototypeSegmenter(small(), encode=lambda s: noise(len(s), T), regions=2, **options)


def test_classes_are_added_and_removed_without_touching_the_others(tmp_path):
    features = noise(2, F, 4, 4)
    found = segmenter().add("cat").add("mug", features=noise(1, F, 4, 4), masks=torch.ones(1, 4, 4), words=False)
    before = found.logits(features=features)
    found.add("dog", text=noise(3, T, seed=4))
    assert found.classes == ("cat", "mug", "dog")
    torch.testing.assert_close(found.logits(features=features)[:, :3], before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        found.logits(features=features[:1]), found.logits(features=features)[:1], rtol=1e-4, atol=1e-4
    )
    assert tuple(found.segment(features=features, size=(9, 7)).shape) == (2, 9, 7)
    torch.testing.assert_close(found.shares(features=features).sum(1), torch.ones(2, 16, 16))
    chosen = found.logits(features=features, classes=["dog", "cat"])
    torch.testing.assert_close(chosen[:, 1], found.logits(features=features)[:, 3], rtol=1e-4, atol=1e-4)
    found.save(tmp_path)
    again = PrototypeSegmenter.load(tmp_path)
    assert again.classes == found.classes
    assert torch.equal(again.logits(features=features), found.logits(features=features))
    assert found.remove("cat").classes == ("mug", "dog")
    (tmp_path / "prototypes.json").write_text(json.dumps({"version": 9}))
    with pytest.raises(StoreError, match="version 9"):
        PrototypeSegmenter.load(tmp_path)
    with pytest.raises(StoreError, match="no segmenter here"):
        PrototypeSegmenter.load(tmp_path / "nowhere")


def test_stored_prototypes_are_capped_and_inputs_not_mutated():
    features, masks = noise(12, F, 4, 4), torch.ones(12, 4, 4)
    kept = features.clone(), masks.clone()
    found = segmenter(most=16).add("mug", features=features, masks=masks, words=False)
    assert tuple(found.clues().visual.shape) == (1, 1, 16, F)
    assert torch.equal(features, kept[0])
    assert torch.equal(masks, kept[1])


def test_very_many_prototypes_are_thinned_out_first():
    found = segmenter(most=2)
    assert tuple(found._capped(noise(2100, F)).shape) == (2, F)


def test_pixels_to_ignore_are_neither_the_class_nor_background():
    features = torch.zeros(1, F, 4, 4)
    for row in range(4):
        features[0, row, row] = 1.0
    masks, ignore = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    masks[0, 0], ignore[0, 1] = 1, 1
    found = PrototypeSegmenter(small(), regions=1).add("mug", features=features, masks=masks, ignore=ignore)
    clues = found.clues()
    torch.testing.assert_close(clues.visual[0, 0, 0], torch.eye(F)[0])
    torch.testing.assert_close(clues.background[0, 0], (torch.eye(F)[2] + torch.eye(F)[3]) / 2)
    everything = PrototypeSegmenter(small(), regions=1).add("mug", features=features, masks=masks, ignore=1 - masks)
    assert everything.clues().background is None


def test_far_classes_are_not_decoded_and_get_minus_infinity_picture_by_picture():
    found = segmenter(least=0.99)
    code = noise(2, F, seed=7)
    pictures = code[:, :, None, None].expand(-1, -1, 4, 4).contiguous()
    for k in range(2):
        found.add(f"thing {k}", features=pictures[k : k + 1], masks=torch.ones(1, 4, 4), words=False)
    found.model.fusion = None  # so that the prototypes are the projected features themselves
    logits = found.logits(features=pictures)
    assert logits[0, 2].isneginf().all()
    assert logits[1, 1].isneginf().all()
    assert torch.isfinite(logits[0, 1]).all()
    torch.testing.assert_close(found.logits(features=pictures[:1]), logits[:1], rtol=1e-4, atol=1e-4)
    found.least = 2.0
    assert found.segment(features=pictures).eq(0).all()


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"features": noise(1, F, 4, 4)}, "go together"),
        ({"features": noise(1, F, 4, 4), "masks": torch.zeros(1, 4, 4)}, "empty"),
        ({"features": noise(1, F, 4, 4), "masks": torch.ones(2, 4, 4)}, "masks"),
        ({"features": noise(1, F + 1, 4, 4), "masks": torch.ones(1, 4, 4)}, "features"),
        ({"features": noise(1, F, 4, 4), "masks": 3 * torch.ones(1, 4, 4)}, "outside"),
        ({"pictures": noise(1, 3, 8, 8), "masks": torch.ones(1, 8, 8)}, "no dense encoder"),
        ({"words": False}, "nothing is known"),
        ({"text": np.full((2, T), np.nan)}, "finite"),
        ({"text": np.ones((2, T + 1))}, "the model reads"),
        ({"features": noise(1, F, 4, 4), "masks": torch.ones(1, 4, 4), "ignore": torch.ones(1, 3, 4)}, "ignore"),
    ],
)
def test_hostile_clues(given, match):
    found = segmenter()
    with pytest.raises(BadInput, match=match):
        found.add("cat", **given)
    assert found.classes == ()


def test_hostile_calls():
    found = segmenter()
    with pytest.raises(BadInput, match="no class"):
        found.segment(features=noise(1, F, 4, 4))
    with pytest.raises(UnknownName):
        found.remove("cat")
    with pytest.raises(BadInput, match="masks of"):
        PrototypeSegmenter(small(), ConvEncoder(F).encode).add(
            "x", pictures=noise(1, 3, 8, 8), masks=torch.ones(1, 4, 4)
        )
    with pytest.raises(UnknownName):
        split_mask(torch.ones(4, 4), noise(2, 4, 4), 2, rule="random")
    with pytest.raises(BadInput, match="no features"):
        split_mask(torch.ones(4, 4), None, 2)
    with pytest.raises(BadInput, match="neither"):
        Clues()
    with pytest.raises(BadInput, match="labels from"):
        small().losses(noise(1, F, 4, 4), Clues(text=noise(1, 1, 1, T)), torch.full((1, 4, 4), 2))
    with pytest.raises(BadInput, match="expected"):
        small()(noise(1, F + 1, 4, 4), Clues(text=noise(1, 1, 1, T)))


def test_nan_fractions_of_regions_and_clues_of_other_batches_are_refused():
    features, mask = noise(8, 5, 5), torch.ones(5, 5)
    for make in (
        lambda: visual_prototypes(features * torch.nan, mask, 3),
        lambda: visual_prototypes(features, mask - 2 * torch.eye(5), 3),
        lambda: split_mask(mask, features, 2.5),
        lambda: small(temperature=float("nan")),
        lambda: small(dice=float("nan")),
        lambda: PrototypeSegmenter(small(), regions=2.5),
        lambda: segmenter(rule="x"),
        lambda: segmenter().add("a").segment(features=noise(1, F, 4, 4) * torch.nan),
        lambda: Clues(noise(2, 3, 4, 6), background=noise(3, 2, 8)),
    ):
        with pytest.raises(BadInput):
            make()
