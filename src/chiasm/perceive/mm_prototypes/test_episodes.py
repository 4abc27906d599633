"""Episodes, training, evaluation and dense encoders: draws, figures against counts, hostile input."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from chiasm.errors import BadInput, UnknownName
from chiasm.perceive.mm_prototypes import (
    ClipEncoder,
    Clues,
    Episodes,
    MultiModalPrototypes,
    PrototypeSegmenter,
    SupportBank,
    evaluate,
    evaluate_episodes,
    fit,
    fold,
    misplaced,
    pretrain,
    relabelled,
    to_grid,
)
from chiasm.perceive.mm_prototypes.test_mm_prototypes import D, F, T, noise, small

# ---- episodes and training


def scenes(count=12, side=16):
    """Squares of one of three classes; class c has its own direction in feature space."""
    rng = np.random.default_rng(0)
    labels = np.zeros((count, side, side), dtype=np.uint8)
    for row in range(count):
        top, left = rng.integers(0, side // 2, size=2)
        labels[row, top : top + 8, left : left + 8] = row % 3 + 1
    codes = noise(4, F, seed=5)
    cover = torch.stack([to_grid(torch.from_numpy(labels == c), (8, 8)) for c in range(4)], dim=1)
    features = torch.einsum("ncij,cf->nfij", cover, codes) + 0.05 * noise(count, F, 8, 8)
    return features, labels, {c: noise(2, T, seed=10 + c) for c in (1, 2, 3)}


def test_episodes_are_reproducible_and_the_query_is_no_support():
    features, labels, texts = scenes()
    bank = SupportBank.of(features, labels, classes=[1, 2, 3], regions=2)
    assert tuple(bank.inside.shape) == (12, 2, F)
    episodes = Episodes(features, labels, bank, texts, ways=2, shots=3, length=30)
    first, again = episodes[7], episodes[7]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert tuple(first["visual"].shape) == (2, 6, F)
    assert tuple(first["background"].shape) == (12, F)
    assert set(torch.unique(first["labels"]).tolist()) <= {0, 1, 2}
    for number in range(12):
        drawn = bank.draw(1, 3, np.random.default_rng(number), without=0)
        assert 0 not in bank.picture[drawn]
        assert len(set(drawn.tolist())) == 3


def test_every_episode_draws_one_way_to_say_it():
    features, labels, texts = scenes()
    bank = SupportBank.of(features, labels, classes=[1, 2, 3], regions=1)
    said = {c: torch.stack([rows, rows + 100]) for c, rows in texts.items()}
    episodes = Episodes(features, labels, bank, said, ways=3, shots=1, length=10)
    plain = Episodes(features, labels, bank, texts, ways=3, shots=1, length=10)
    shifts = torch.cat([(episodes[i]["text"] - plain[i]["text"]).mean(dim=(1, 2)) for i in range(10)])
    assert set(shifts.round().tolist()) == {0.0, 100.0}
    assert torch.equal(episodes[3]["visual"], plain[3]["visual"])


def test_relabelling_by_hand():
    labels = torch.tensor([0, 1, 2, 3, 255])
    assert relabelled(labels, [3, 1], unlabelled=[2]).tolist() == [0, 2, 255, 1, 255]
    assert relabelled(labels, [3, 1]).tolist() == [0, 2, 0, 1, 255]


def test_surroundings_leave_out_every_named_class_and_unlabelled_pixels():
    features = torch.zeros(1, 3, 4, 4)
    labels = np.zeros((1, 4, 4), int)
    labels[0, 0], labels[0, 1], labels[0, 2] = 1, 2, 255
    for row in range(4):
        features[0, :, row] = torch.tensor([1.0, row, row * row])[:, None]
    bank = SupportBank.of(features, labels, classes=[1, 2], regions=1)
    torch.testing.assert_close(bank.around[0, 0], torch.tensor([1.0, 3.0, 9.0]))
    only = SupportBank.of(features, labels, classes=[1], regions=1)
    torch.testing.assert_close(only.around[0, 0], torch.tensor([1.0, 2.0, 5.0]))


def test_training_learns_to_segment_by_pictures_and_by_words():
    features, labels, texts = scenes()
    bank = SupportBank.of(features, labels, classes=[1, 2, 3], regions=2)
    model = small()
    episodes = Episodes(features, labels, bank, texts, ways=2, shots=1, length=480)
    history = fit(model, episodes, rate=3e-3, batch_size=8)
    assert len(history) >= 2
    assert history[-1]["loss"] < history[0]["loss"]
    assert not model.training
    one = Episodes(features, labels, bank, texts, ways=2, shots=1, length=8, seed=9)
    batch = [one[i] for i in range(8)]
    stacked = {name: torch.stack([row[name] for row in batch]) for name in batch[0]}
    clues = Clues(stacked["text"], stacked["visual"], stacked["background"])
    for some in (clues, clues.without_text(), clues.without_visual()):
        with torch.no_grad():
            found = functional.interpolate(model(stacked["features"], some), size=(16, 16), mode="bilinear").argmax(1)
        right = float((found == stacked["labels"]).float().mean())
        assert right > float((stacked["labels"] == 0).float().mean()) + 0.05


def test_figures_of_episodes_against_counts_one_by_one():
    features, labels, texts = scenes()
    bank = SupportBank.of(features, labels, classes=[1, 2, 3], regions=2)
    model = small().train()
    episodes = Episodes(features, labels, bank, texts, ways=1, shots=2, length=9, seed=4)
    found = evaluate_episodes(model, episodes, clues="visual", batch=4)
    assert model.training
    model.eval()
    both, either = dict.fromkeys((1, 2, 3), 0), dict.fromkeys((1, 2, 3), 0)
    for row in (episodes[i] for i in range(9)):
        clues = Clues(visual=row["visual"][None], background=row["background"][None])
        with torch.no_grad():
            logits = functional.interpolate(model(row["features"][None], clues), size=(16, 16), mode="bilinear")
        there, right = logits.argmax(1)[0] == 1, row["labels"] == 1
        both[int(row["class_ids"][0])] += int((there & right).sum())
        either[int(row["class_ids"][0])] += int((there | right).sum())
    expected = {c: both[c] / either[c] for c in both if either[c]}
    assert found.iou == pytest.approx(expected)
    assert found.miou == pytest.approx(np.mean(list(expected.values())))
    with pytest.raises(BadInput, match="ways=1"):
        evaluate_episodes(model, Episodes(features, labels, bank, texts, ways=2))
    with pytest.raises(UnknownName):
        evaluate_episodes(model, episodes, clues="sound")


def test_evaluation_does_not_depend_on_the_batch_and_wrong_supports_change_it():
    features, labels, texts = scenes()
    bank = SupportBank.of(features, labels, classes=[1, 2, 3], regions=2)
    model = small()
    given = {"classes": [1, 2, 3], "clues": "visual", "seed": 3}
    whole = evaluate(model, features, labels, bank, texts, batch=16, **given)
    assert evaluate(model, features, labels, bank, texts, batch=5, **given).iou == pytest.approx(whole.iou, nan_ok=True)
    order = np.roll(np.arange(len(bank.owner)), 1)
    wrong = SupportBank(bank.picture, bank.owner, bank.inside[order], bank.around[order], bank.around_there[order])
    moved = misplaced(bank, wrong)
    assert torch.equal(moved.inside, wrong.inside)
    assert np.array_equal(moved.owner, bank.owner)
    # Words alone do not look at the supports.
    words = [evaluate(model, features, labels, b, texts, classes=[1, 2, 3], clues="text") for b in (bank, moved)]
    assert words[0].iou == pytest.approx(words[1].iou, nan_ok=True)


def test_folds_share_out_the_classes():
    for interleaved in (False, True):
        novel = [fold(20, k, interleaved=interleaved)[1] for k in range(4)]
        assert sorted(c for one in novel for c in one) == list(range(1, 21))
        assert all(len(n) == 5 for n in novel)
    assert fold(20, 1)[1] == [6, 7, 8, 9, 10]
    assert fold(80, 1, interleaved=True)[1][:3] == [2, 6, 10]
    assert not set(fold(20, 1)[0]) & set(fold(20, 1)[1])
    with pytest.raises(BadInput, match="fold 4"):
        fold(20, 4)


def test_a_dense_encoder_is_pretrained():
    rng = np.random.default_rng(0)
    labels = torch.zeros(16, 16, 16, dtype=torch.long)
    labels[:, :8] = 1
    pixels = torch.from_numpy(rng.normal(size=(16, 3, 16, 16)).astype(np.float32) * 0.1)
    pixels[:, 0, :8] += 1
    encoder = pretrain(pixels, labels, width=16, epochs=4, batch_size=4)
    found = encoder.encode(pixels)
    assert tuple(found.shape) == (16, 16, 4, 4)
    upper, lower = (
        functional.normalize(found[:, :, 0].mean(2), dim=1),
        functional.normalize(found[:, :, 3].mean(2), dim=1),
    )
    assert float((upper[0] * upper[1]).sum()) > float((upper[0] * lower[1]).sum())


def test_classes_of_the_query_picture_come_first_and_every_class_can_come():
    features, labels, texts = scenes()
    labels[:, 12:, 12:] = 4  # a fourth class in the corner of every picture
    texts[4] = noise(2, T, seed=14)
    bank = SupportBank.of(features, labels, classes=[1, 2, 3, 4], regions=2)
    episodes = Episodes(features, labels, bank, texts, ways=4, shots=1, length=20)
    assert all(sorted(episodes[i]["class_ids"].tolist()) == [1, 2, 3, 4] for i in range(20))
    two = Episodes(features, labels, bank, texts, ways=2, shots=1, length=40)
    drawn = [two[i] for i in range(40)]
    assert {c for row in drawn for c in row["class_ids"].tolist()} == {1, 2, 3, 4}
    assert all(len(set(row["class_ids"].tolist())) == 2 for row in drawn)
    assert all(bool(((row["labels"] == 1) | (row["labels"] == 2)).any()) for row in drawn)


def test_averaged_episodes_hold_the_mean_of_every_support_and_nothing_else_changes():
    features, labels, texts = scenes()
    bank = SupportBank.of(features, labels, classes=[1, 2, 3], regions=4)
    given = {"ways": 2, "shots": 2, "length": 30}
    plain = Episodes(features, labels, bank, texts, **given)
    always = Episodes(features, labels, bank, texts, averaged=1.0, **given)
    often = Episodes(features, labels, bank, texts, averaged=0.5, **given)
    alike = 0
    for i in range(30):
        one, mean, some = plain[i], always[i], often[i]
        rows = mean["visual"].reshape(2, 2, 4, F)
        torch.testing.assert_close(rows, rows[:, :, :1].expand_as(rows))
        assert torch.equal(one["labels"].unique(), mean["labels"].unique())
        rows = some["visual"].reshape(2, 2, 4, F)
        alike += bool((rows - rows[:, :, :1]).abs().max() < 1e-6)
    assert 5 < alike < 25
    row = plain.episode(0, [1, 2], np.random.default_rng(5))
    mean = plain.episode(0, [1, 2], np.random.default_rng(5), averaged=True)
    means = row["visual"].reshape(2, 2, 4, F).mean(dim=2)
    torch.testing.assert_close(mean["visual"].reshape(2, 2, 4, F)[:, :, 0], means)
    assert torch.equal(mean["background"], row["background"])
    # Copies of a prototype count as one: the model cannot tell them from a single one.
    model = small()
    logits = [model(row["features"][None], Clues(visual=visual[None])) for visual in (mean["visual"], means)]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)


def test_a_class_list_of_one_is_the_binary_case():
    features, labels, texts = scenes()
    bank = SupportBank.of(features, labels, classes=[2], regions=2)
    one = Episodes(features, labels, bank, texts, ways=1, shots=1, length=4)[0]
    assert one["class_ids"].tolist() == [2]
    assert set(one["labels"].unique().tolist()) == {0, 1}
    assert len(evaluate(small(), features, labels, bank, texts, classes=[2]).iou) == 2
    with pytest.raises(BadInput, match="ways=2"):
        Episodes(features, labels, bank, texts, ways=2)


def test_hostile_labels_and_lists_of_classes():
    features, labels, texts = scenes(3)
    with pytest.raises(BadInput, match="no picture shows class 9"):
        SupportBank.of(features, labels, classes=[9])
    for classes in ([], [0, 1], [255]):
        with pytest.raises(BadInput, match="numbered from 1"):
            SupportBank.of(features, labels, classes=classes)
    with pytest.raises(BadInput, match="same N pictures"):
        SupportBank.of(features, labels[:2], classes=[1])
    for wrong in (-1, 300):
        with pytest.raises(BadInput, match="labels from"):
            SupportBank.of(features, np.where(labels == 2, wrong, labels.astype(int)), classes=[1])
        with pytest.raises(BadInput, match="labels from"):
            relabelled(torch.tensor([0, wrong]), [1])
    for chosen in ([], [1, 1], [0], [300]):
        with pytest.raises(BadInput, match="from 1 to 254"):
            relabelled(torch.tensor([0, 1]), chosen)
    bank = SupportBank.of(features, labels, classes=[1, 2, 3], regions=1)
    with pytest.raises(BadInput, match="are needed"):
        Episodes(features, labels, bank, texts)
    with pytest.raises(BadInput, match="has no words"):
        Episodes(features, labels, bank, {1: texts[1]}, shots=0)
    with pytest.raises(BadInput, match="averaged=2"):
        Episodes(features, labels, bank, texts, shots=0, averaged=2)
    pixels = noise(3, 3, 16, 16)
    for bad in (
        torch.zeros(3, 8, 8),
        torch.zeros(3, 16, 16),
        torch.full((3, 16, 16), 255),
        torch.full((3, 16, 16), -2),
    ):
        with pytest.raises(BadInput, match="pretrain"):
            pretrain(pixels, bad.long())


# ---- Hugging Face encoders


def test_a_clip_of_any_size_is_a_dense_encoder():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**tower, "vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 49, "bos_token_id": 47, "pad_token_id": 48},
        vision_config={**tower, "image_size": 16, "patch_size": 4},
        projection_dim=F,
    )  # fmt: skip

    def tokenizer(texts, *, max_length, **options):
        ids = torch.full((len(texts), max_length), 49)
        for row, text in enumerate(texts):
            codes = [47, *(ord(c) % 40 for c in text[: max_length - 2])]
            ids[row, : len(codes)] = torch.tensor(codes)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    encoder = ClipEncoder(transformers.CLIPModel(config), tokenizer, batch=2)
    pictures = noise(3, 3, 16, 16)
    found = encoder.pictures(pictures)
    assert tuple(found.shape) == (3, F, 4, 4)
    torch.testing.assert_close(encoder.pictures(pictures[2:]), found[2:], rtol=1e-4, atol=1e-5)
    assert tuple(encoder.pictures(noise(1, 3, 24, 32)).shape) == (1, F, 6, 8)
    rows = encoder.texts(["a cat", "a very long sentence that does not fit into the context", "dog"])
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    with pytest.raises(BadInput, match="multiples of 4"):
        encoder.pictures(noise(1, 3, 18, 16))
    with pytest.raises(BadInput, match="tokenizer"):
        ClipEncoder(encoder.model).texts(["x"])
    with pytest.raises(BadInput, match="joint space"):
        ClipEncoder(torch.nn.Linear(2, 2))
    torch.manual_seed(0)
    model = MultiModalPrototypes(F, F, width=D, heads=2, channels=8)
    whole = PrototypeSegmenter(model, encoder.pictures, encoder.texts).add("cat").add("dog")
    assert tuple(whole.segment(pictures).shape) == (3, 16, 16)


def test_values_are_what_a_patch_gives_to_the_class_token():
    """Where the class token looks at all tokens alike, its attention output is the mean of these values."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(vision_config={**tower, "image_size": 16, "patch_size": 4}, projection_dim=F)
    model = transformers.CLIPModel(config).eval()
    pictures = noise(2, 3, 16, 16)
    vision, seen = model.vision_model, []
    last = vision.encoder.layers[-1].self_attn
    hook = last.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    found = ClipEncoder(model).pictures(pictures)
    with torch.no_grad():
        last.q_proj.weight.zero_()
        last.q_proj.bias.zero_()  # the class token looks at all tokens alike, so it gets the mean of their values
        vision(pixel_values=pictures)
    hook.remove()
    layer = vision.encoder.layers[-1]
    with torch.no_grad():
        hidden = vision(pixel_values=pictures, output_hidden_states=True).hidden_states[-2]
        values = last.out_proj(last.v_proj(layer.layer_norm1(hidden)))
        torch.testing.assert_close(values.mean(dim=1), seen[-1][:, 0], rtol=1e-4, atol=1e-5)
        expected = model.visual_projection(vision.post_layernorm(values[:, 1:]))
    expected = functional.normalize(expected, dim=-1).transpose(1, 2).reshape(2, F, 4, 4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ClipEncoder(model, values=False).pictures(pictures), found, atol=1e-2)
