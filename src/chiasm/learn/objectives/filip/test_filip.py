"""FILIP: the card's identities, gradients against autograd of the definition, selection, storage, search, maps, data rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from chiasm.errors import BadInput, UnknownName
from chiasm.learn import Features, HeldOut, InfoNCE, Pairs, Stage, objective, train
from chiasm.learn.held_out import Encoded
from chiasm.learn.objectives.filip import (
    PROMPTS,
    Filip,
    Prompt,
    Recipe,
    TwoStage,
    Versions,
    keep_tokens,
    late_interaction,
    merge_tokens,
    patch_of_word,
    select_locally,
    strongest,
    token_strength,
    unit_tokens,
    word_patch_map,
    zero_shot,
)
from chiasm.learn.objectives.filip.recipe import (
    has_word,
    is_file_name,
    is_meaningless,
    looks_english,
    mask_names,
    picture_fits,
    repeated,
)
from chiasm.learn.towers import Tower, dual_tower


def tokens(seed, n, length, dim=6, holes=True):
    """Unit tokens with padding at the end; every item has at least one."""
    g = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.normalize(torch.randn(n, length, dim, generator=g, dtype=torch.float64), dim=-1)
    counts = torch.randint(1, length + 1, (n, 1), generator=g) if holes else torch.full((n, 1), length)
    mask = torch.arange(length)[None, :] < counts
    return x.masked_fill(~mask[..., None], 0), mask


def naive(a, b, ma, mb):
    """The definition, pair by pair, differentiable by autograd."""
    to_b, to_a = [], []
    for v, mv in zip(a, ma):
        rows = [(v[mv] @ t[mt].T) for t, mt in zip(b, mb)]
        to_b.append(torch.stack([s.max(1).values.mean() for s in rows]))
        to_a.append(torch.stack([s.max(0).values.mean() for s in rows]))
    return torch.stack(to_b), torch.stack(to_a)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 5),
    m=st.integers(1, 5),
    n1=st.integers(1, 6),
    n2=st.integers(1, 6),
    chunk=st.one_of(st.none(), st.integers(1, 6)),
    wanted=st.sampled_from(["both", "a", "b"]),
)
def test_scores_and_gradients_equal_the_definition(seed, n, m, n1, n2, chunk, wanted):
    (a, ma), (b, mb) = tokens(seed, n, n1), tokens(seed + 1, m, n2)
    ours = [x.clone().requires_grad_() for x in (a, b)]
    theirs = [x.clone().requires_grad_() for x in (a, b)]
    got, expected = late_interaction(*ours, ma, mb, wanted=wanted, chunk=chunk), naive(*theirs, ma, mb)
    weights = [torch.randn(n, m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for _ in "ab"]
    used = [i for i, way in enumerate("ba") if wanted in ("both", way)]
    for i in used:
        torch.testing.assert_close(got[i], expected[i])
    for values in (got, expected):
        sum((values[i] * weights[i]).sum() for i in used).backward()  # pyright: ignore[reportAttributeAccessIssue]
    for x, y in zip(ours, theirs):
        torch.testing.assert_close(x.grad, y.grad)


def test_many_blocks_equal_one(monkeypatch):
    from chiasm.learn.objectives.filip import interaction

    (a, ma), (b, mb) = tokens(0, 9, 4), tokens(1, 11, 3)
    whole = late_interaction(a, b, ma, mb)
    monkeypatch.setattr(interaction, "_BLOCK", 50)
    for x, y in zip(whole, late_interaction(a, b, ma, mb)):
        torch.testing.assert_close(x, y, atol=1e-12, rtol=0)


def test_one_token_each_is_cosine():
    a, b = torch.randn(4, 7), torch.randn(5, 7)
    cosine = torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).T
    for direction in ("a", "b"):
        torch.testing.assert_close(Filip().similarity(Encoded(a), Encoded(b), direction), cosine)
    square = Filip(0.05, learn_temperature=False)(a, b[:4])
    expected = InfoNCE(0.05)(a, b[:4])
    for name in expected:
        torch.testing.assert_close(square[name], expected[name])


def test_closed_forms():
    to_b, to_a = late_interaction(torch.eye(2)[None], torch.tensor([[[1.0, 0.0]]]))
    assert float(to_b) == 0.5
    assert float(to_a) == 1.0
    loss = sum(Filip(1.0, learn_temperature=False)(torch.eye(2), torch.eye(2)).values())
    assert float(loss) == pytest.approx(np.log1p(np.exp(-1)), abs=1e-6)  # .3133


def test_padding_and_order_do_not_matter_and_a_double_patch_leaves_to_a():
    (a, ma), (b, mb) = tokens(0, 4, 5, holes=False), tokens(1, 3, 4, holes=False)
    before = late_interaction(a, b, ma, mb)
    padded = torch.cat([b, torch.full((3, 2, 6), torch.nan, dtype=b.dtype)], 1)
    padding = torch.cat([mb, torch.zeros(3, 2, dtype=torch.bool)], 1)
    clean = unit_tokens(padded, padding)
    for x, y in zip(before, late_interaction(a, *clean[:1], ma, clean[1])):
        torch.testing.assert_close(x, y)
    for x, y in zip(before, late_interaction(a.flip(1), b, ma, mb)):
        torch.testing.assert_close(x, y)
    doubled = late_interaction(torch.cat([a, a[:, :1]], 1), b)
    torch.testing.assert_close(doubled[1], before[1])
    assert not torch.allclose(doubled[0], before[0])


def test_an_item_without_tokens_comes_last_and_gets_no_gradient():
    (a, ma), (b, mb) = tokens(0, 3, 4), tokens(1, 3, 4)
    mb = mb.clone()
    mb[1] = False
    a, b = a.requires_grad_(), b.requires_grad_()
    to_b, to_a = late_interaction(a, b, ma, mb)
    assert (to_b[:, 1] == -1).all()
    assert (to_a[:, 1] == -1).all()
    (to_b.sum() + to_a.sum()).backward()
    assert a.grad is not None
    assert b.grad is not None
    assert a.grad.isfinite().all()
    assert (b.grad[1] == 0).all()
    losses = Filip()(a.detach().mean(1), b.detach().mean(1), a_tokens=a, b_tokens=b, a_mask=ma, b_mask=mb)
    assert all(value.isfinite() for value in losses.values())


def test_several_positives_share_the_target():
    (a, ma), (b, mb) = tokens(2, 4, 3), tokens(3, 4, 3)
    groups = torch.tensor([0, 0, 1, 2])
    method = Filip(0.1, learn_temperature=False)
    parts = method(a[:, 0], b[:, 0], a_tokens=a, b_tokens=b, a_mask=ma, b_mask=mb, groups=groups)
    to_b, to_a = naive(a, b, ma, mb)
    target = (groups[:, None] == groups[None, :]).double()
    target /= target.sum(1, keepdim=True)
    for part, scores in ((parts["a_to_b"], to_b), (parts["b_to_a"], to_a.T)):
        torch.testing.assert_close(part, torch.nn.functional.cross_entropy(scores / 0.1, target) / 2)


def test_all_pairs_identical_and_a_batch_of_one_are_defined():
    same = torch.ones(3, 2, 4)
    losses = Filip()(same[:, 0], same[:, 0], a_tokens=same, b_tokens=same)
    assert float(sum(losses.values())) == pytest.approx(np.log(3), rel=1e-5)
    assert float(sum(Filip()(same[:1, 0], same[:1, 0]).values())) == pytest.approx(0, abs=1e-6)


# ---- selection


def test_keeping_everything_is_no_selection_and_less_keeps_a_quarter():
    (a, ma), (b, mb) = tokens(4, 6, 8), tokens(5, 6, 5)
    given_ = {"a_tokens": a, "b_tokens": b, "a_mask": ma, "b_mask": mb}
    plain, all_kept = Filip().train()(a[:, 0], b[:, 0], **given_), Filip(keep=1.0).train()(a[:, 0], b[:, 0], **given_)
    for name in plain:
        assert plain[name] == all_kept[name]
    (far_a, kept), _ = select_locally(a, b, ma, mb, 1.0)
    for x, y in zip(late_interaction(a, b, ma, mb), late_interaction(far_a, b, kept, mb)):
        torch.testing.assert_close(x, y)
    (far_a, kept), _ = select_locally(a, b, ma, mb, 0.25)
    assert far_a.shape[1] == 2
    assert kept.sum(1).tolist() == torch.ceil(ma.sum(1) * 0.25).long().tolist()
    # Selection is for training only.
    torch.testing.assert_close(Filip(keep=0.25).eval()(a[:, 0], b[:, 0], **given_), plain)
    trained = Filip(keep=0.25).train()(a[:, 0], b[:, 0], **given_)
    to_b = naive(a, *select_locally(a, b, ma, mb, 0.25)[1][:1], ma, select_locally(a, b, ma, mb, 0.25)[1][1])[0]
    expected = torch.nn.functional.cross_entropy(to_b / 0.07, torch.arange(6)) / 2
    torch.testing.assert_close(trained["a_to_b"], expected, rtol=1e-5, atol=1e-6)


def test_strength_is_the_maximum_over_the_local_batch():
    (a, ma), (b, mb) = tokens(6, 4, 5), tokens(7, 4, 3)
    strong, of_b = token_strength(a, b, ma, mb, block=7)
    for i, k in ma.nonzero().tolist():
        assert float(strong[i, k]) == pytest.approx(float((b[mb] @ a[i, k]).max()))
    assert strong[~ma].isneginf().all()
    assert of_b[~mb].isneginf().all()
    halves = [select_locally(a[s], b[s], ma[s], mb[s], 0.4) for s in (slice(0, 2), slice(2, 4))]
    local = select_locally(a, b, ma, mb, 0.4, local=2)
    for i, half in enumerate(halves):
        width = half[0][0].shape[1]
        torch.testing.assert_close(local[0][0][2 * i : 2 * i + 2, :width], half[0][0])


def test_selected_tokens_keep_their_gradient_and_others_get_none():
    (a, ma), (b, mb) = tokens(8, 3, 6, holes=False), tokens(9, 3, 2, holes=False)
    a = a.requires_grad_()
    strength = torch.arange(6.0).expand(3, 6)
    kept, inside = strongest(a, ma, strength, 0.3)
    late_interaction(kept, b, inside, mb, wanted="b")[0].sum().backward()
    assert a.grad is not None
    assert (a.grad[:, :4] == 0).all()
    assert (a.grad[:, 4:].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_a_share_outside_the_range_is_refused(share):
    with pytest.raises(BadInput, match="no share"):
        Filip(keep=share)
    with pytest.raises(BadInput, match="no share"):
        strongest(torch.ones(1, 2, 3), torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 2), share)


# ---- options of the objective


def test_special_tokens_and_the_class_token_can_be_left_out():
    (a, ma), (b, _) = tokens(0, 3, 5, holes=False), tokens(1, 3, 6, holes=False)
    mb = torch.arange(6)[None, :] < torch.tensor([[6], [4], [2]])
    method = Filip(class_token=True, drop_special=True)
    assert method.tokens_of_b(b, mb)[1].tolist() == [
        [False, True, True, True, True, False],
        [False, True, True, False, False, False],
        [True, True, False, False, False, False],  # nothing but BOS and EOS: they stay
    ]
    inner = method.tokens_of_b(b, mb)[1]
    got = method.similarity(Encoded(a[:, 0], a, ma), Encoded(b[:, 0], b, mb), "a")
    torch.testing.assert_close(got, naive(a[:, 1:], b, ma[:, 1:], inner)[0])


def test_which_matrix_ranks():
    a, b = (Encoded(x[:, 0], x, m) for x, m in (tokens(0, 3, 5), tokens(1, 4, 6)))
    assert a.mask is not None
    to_b, to_a = late_interaction(a.tokens, b.tokens, a.mask, b.mask)  # pyright: ignore[reportArgumentType]
    for score, forth, back in (
        ("own", to_b, to_a),
        ("i2t", to_b, to_b),
        ("t2i", to_a, to_a),
        ("mean", (to_a + to_b) / 2, (to_a + to_b) / 2),
    ):
        torch.testing.assert_close(Filip(score=score).similarity(a, b, "a"), forth)
        torch.testing.assert_close(Filip(score=score).similarity(a, b, "b"), back)


@pytest.mark.parametrize("product", ["float16", "bfloat16"])
def test_half_precision_stays_close_and_trains(product):
    (a, ma), (b, mb) = tokens(0, 4, 5), tokens(1, 4, 6)
    a, b = a.float().requires_grad_(), b.float().requires_grad_()
    given_ = {"a_tokens": a, "b_tokens": b, "a_mask": ma, "b_mask": mb}
    full, half = (Filip(product=p)(a[:, 0], b[:, 0], **given_) for p in ("float32", product))
    assert float(half["a_to_b"]) == pytest.approx(float(full["a_to_b"]), abs=0.1)
    half["a_to_b"].backward()
    assert a.grad is not None
    assert a.grad.dtype == torch.float32
    assert a.grad.isfinite().all()


def test_unknown_options_are_named():
    for bad in ({"score": "t2j"}, {"product": "float8"}):
        with pytest.raises(UnknownName):
            Filip(**bad)
    with pytest.raises(UnknownName, match="keep"):
        objective("filip", kep=0.5)
    with pytest.raises(BadInput, match="chunk"):
        Filip(chunk=0)
    with pytest.raises(UnknownName):
        Filip().similarity(Encoded(torch.ones(1, 2)), Encoded(torch.ones(1, 2)), score="x")  # pyright: ignore
    with pytest.raises(BadInput, match=r"expected \[N, L, D\]"):
        Filip()(torch.ones(2, 3), torch.ones(2, 3), a_tokens=torch.ones(2, 2, 2, 3))
    with pytest.raises(BadInput, match="mask"):
        Filip()(torch.ones(2, 3), torch.ones(2, 3), a_tokens=torch.ones(2, 2, 3), a_mask=torch.ones(2, 3))
    with pytest.raises(BadInput, match="cannot be compared"):
        Filip()(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(BadInput, match="does not exist"):
        late_interaction(torch.ones(1, 1, 2), torch.ones(1, 1, 2), wanted="c")  # pyright: ignore[reportArgumentType]


def test_the_temperature_learns_and_survives_saving(tmp_path):
    method = Filip(0.05)
    a = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    sum(method(a, a.flip(0)).values()).backward()  # pyright: ignore[reportAttributeAccessIssue]
    assert method.contrast.log_scale.grad != 0
    save_file(method.state_dict(), tmp_path / "x.safetensors")
    other = Filip(0.9)
    other.load_state_dict(load_file(tmp_path / "x.safetensors"))
    assert torch.equal(other.contrast.scale, method.contrast.scale)
    assert float(Filip(1e-4).contrast.scale) == 100.0


# ---- storage and search


def test_stored_tokens_by_norm_bank_and_own_strength():
    x, mask = tokens(0, 3, 8, holes=False)
    long = x * torch.arange(1, 9, dtype=x.dtype)[None, :, None]
    items = Encoded(x[:, 0], long, mask)
    by_norm = keep_tokens(items, 0.25)
    torch.testing.assert_close(by_norm.tokens, long[:, [7, 6]])
    own = keep_tokens(items, 0.25, by=-torch.arange(8.0).expand(3, 8))
    torch.testing.assert_close(own.tokens, long[:, :2])
    bank = Encoded(x[:, 0], x[:, 3:4], mask[:, 3:4])
    by_bank = keep_tokens(items, 0.01, by="bank", bank=bank)
    torch.testing.assert_close(by_bank.tokens, long[:, 3:4])
    assert torch.equal(keep_tokens(items, 1.0).vectors, items.vectors)
    with pytest.raises(BadInput, match="needs a bank"):
        keep_tokens(items, by="bank")
    with pytest.raises(BadInput, match="does not exist"):
        keep_tokens(items, by="attention")
    with pytest.raises(BadInput, match="no tokens"):
        keep_tokens(Encoded(x[:, 0]))


def test_merging_finds_planted_clusters_and_leaves_short_items_alone():
    g = torch.Generator().manual_seed(0)
    centers = torch.linalg.qr(torch.randn(8, 8, generator=g))[0][:3]
    clouds = (centers[torch.arange(12) % 3] + 0.01 * torch.randn(2, 12, 8, generator=g))[
        :, torch.randperm(12, generator=g)
    ]
    merged = merge_tokens(Encoded(clouds[:, 0], clouds), 3)
    assert merged.tokens is not None
    assert ((merged.tokens @ centers.T).amax(1) > 0.99).all()
    few = Encoded(clouds[:, 0], clouds, torch.arange(12)[None, :] < torch.tensor([[2], [12]]))
    kept = merge_tokens(few, 5)
    assert kept.mask is not None
    assert kept.mask.sum(1).tolist() == [2, 5]
    scores = [late_interaction(unit_tokens(clouds)[0], x.tokens, None, x.mask)[0][:, 0] for x in (few, kept)]  # pyright: ignore
    expected = late_interaction(unit_tokens(clouds)[0], *unit_tokens(few.tokens, few.mask)[:1], None, few.mask)[0][:, 0]  # pyright: ignore
    torch.testing.assert_close(scores[1], expected)


@pytest.mark.parametrize("side", ["query", "document", "mean"])
def test_two_stages_are_exact_with_all_candidates(side):
    (q, mq), (d, md) = tokens(0, 5, 4), tokens(1, 30, 6)
    index = TwoStage(d, md, candidates=30, side=side, kind=np.float32)
    scores, rows = index.search(q, mq, k=7)
    to_b, to_a = naive(q, d, mq, md)
    exact = {"query": to_b, "document": to_a, "mean": (to_a + to_b) / 2}[side]
    best = exact.topk(7, dim=1)
    np.testing.assert_array_equal(rows, best.indices.numpy())
    np.testing.assert_allclose(scores, best.values.numpy(), atol=1e-6)


def test_two_stages_take_any_index_and_refuse_nonsense():
    (q, mq), (d, md) = tokens(0, 2, 4), tokens(1, 9, 6)
    asked = []

    def nearest(vectors, k):
        asked.append((vectors.shape, k))
        return np.zeros((2, 2)), np.array([[4, -1], [3, 4]])

    scores, rows = TwoStage(d, md, candidates=3, nearest=nearest).search(q, mq, k=2)
    assert asked == [((2, 6), 3)]
    assert rows[0].tolist() == [4, -1]
    assert np.isneginf(scores[0, 1])
    assert sorted(rows[1].tolist()) == [3, 4]
    with pytest.raises(UnknownName):
        TwoStage(d, side="both")  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadInput, match="item 1 has no token"):
        TwoStage(d, np.arange(9)[:, None].repeat(6, 1) != 1)
    with pytest.raises(BadInput, match="numbers a token"):
        TwoStage(d).search(q[:, :, :3])
    with pytest.raises(BadInput, match="at least 1"):
        TwoStage(d).search(q, k=0)


# ---- prompts and maps


def test_prompts_and_their_ensemble():
    assert Prompt("a photo of a", "a type of pet", "I like it").text("beagle") == (
        "a photo of a beagle, a type of pet. I like it."
    )
    assert PROMPTS[0].texts(["dog"]) == ["a photo of a dog."]
    (v, mv), (t, mt), (u, mu) = tokens(0, 4, 5), tokens(1, 3, 6), tokens(2, 3, 4)
    pictures, first, second = (Encoded(x[:, 0], x, m) for x, m in ((v, mv), (t, mt), (u, mu)))
    method = Filip(score="t2i")
    one = zero_shot(method, pictures, [first])
    torch.testing.assert_close(one, naive(v, t, mv, mt)[0])
    torch.testing.assert_close(
        zero_shot(method, pictures, [first, second]), (one + zero_shot(method, pictures, [second])) / 2
    )
    for wrong in ([], [first, Encoded(t[:2, 0], t[:2], mt[:2])]):
        with pytest.raises(BadInput, match="templates"):
            zero_shot(method, pictures, wrong)


def test_the_word_patch_map_of_a_planted_picture():
    words = torch.eye(4)
    patches = 5 * words[torch.tensor([[0, 0, 2], [1, 2, 2]])].flatten(0, 1)
    found = word_patch_map(patches, words, torch.tensor([True, True, True, False]), grid=(2, 3))
    assert found.words.tolist() == [[0, 0, 2], [1, 2, 2]]
    assert found.patches.tolist() == [0, 3, 2, -1]
    assert torch.equal(found.similarity, torch.ones(2, 3))
    assert found.highlight(slice(1, 3)).tolist() == [[False, False, True], [True, True, True]]
    drawn = found.draw(Image.new("L", (90, 60)), [1, 2])
    assert drawn.size == (90, 60)
    red = np.asarray(drawn)[..., 0] - np.asarray(drawn)[..., 2].astype(int) > 100
    framed = red.reshape(2, 30, 3, 30).any(axis=(1, 3))
    assert framed.tolist() == [[False, False, True], [True, True, True]]
    assert patch_of_word(patches[None], words[None, :3]).tolist() == [[0, 3, 2]]
    with pytest.raises(BadInput, match="do not fill"):
        word_patch_map(patches, words)
    with pytest.raises(BadInput, match="no tokens"):
        word_patch_map(patches, words, torch.zeros(4, dtype=torch.bool), grid=(2, 3))


# ---- data rules


def test_the_rules_of_the_data_recipe():
    assert picture_fits(600, 200)
    assert not picture_fits(601, 200)
    assert not picture_fits(199, 300)
    assert all(is_file_name(x) for x in ("IMG_2041.JPG", "DSC00017", "img 12 (3)", "my-holiday.png", "untitled"))
    assert not any(is_file_name(x) for x in ("image of a dog", "a photo", "scan of an old map"))
    assert all(is_meaningless(x) for x in ("", "1234 5678", "wow wow wow", "#!? %% a 17-22-91"))
    assert not is_meaningless("Dog on a beach, 2019")
    assert looks_english("A dog runs on the beach in the evening")
    assert not looks_english("Ein Hund läuft am Abend über den langen Strand")
    assert not looks_english("собака на пляже")
    assert has_word("A Gore scene", ["gore"])
    assert not has_word("gorewood", ["gore"])
    assert mask_names("Anna Bell and Anna meet Annabel", ["Anna", "Anna Bell"]) == "<person> and <person> meet Annabel"
    assert repeated(["a b", "A  b", "c"], most=1).tolist() == [True, True, False]


def test_the_recipe_says_what_it_dropped():
    captions = ["a cat on the mat"] * 3 + ["IMG_1.jpg", "Tom eats an apple", "17", "some gore here", "a small picture"]
    sizes = [(300, 300)] * 7 + [(100, 900)]
    kept, why = Recipe(most=2, sensitive=["gore"], names=lambda text: ["Tom"]).filter(captions, sizes)
    assert kept == {4: "<person> eats an apple"}
    assert why == {
        0: "repeated",
        1: "repeated",
        2: "repeated",
        3: "file name",
        5: "meaningless",
        6: "sensitive",
        7: "picture",
    }
    with pytest.raises(BadInput, match="1 sizes for 2"):
        Recipe().filter(["a", "b"], [(1, 1)])


def test_versions_of_a_text_are_drawn_at_random_and_padded():
    long = Features.ragged("input_ids", [np.array([5, 6, 7]), np.array([8, 9, 10])])
    short = Features.ragged("input_ids", [np.array([1]), np.array([2])])
    source = Versions([long, short], seed=0)
    seen = {tuple(row) for _ in range(30) for row in source.batch([0, 1])["input_ids"].tolist()}
    assert seen == {(5, 6, 7), (1, 0, 0), (8, 9, 10), (2, 0, 0)}
    batch = Versions([short, long], seed=1).batch([1, 0])
    assert batch["rows"].tolist() == [1, 0]
    assert torch.equal(batch["attention_mask"], batch["input_ids"] > 0)
    with pytest.raises(BadInput, match="lengths"):
        Versions([long, Features.ragged("input_ids", [np.array([5])])])


# ---- end to end


def test_training_through_the_trainer_aligns_patches_and_the_model_reloads(tmp_path):
    from sentence_transformers import SentenceTransformer

    from chiasm.worlds.patches import patch_scenes

    world = patch_scenes(64, seed=0)
    pairs = Pairs({"a": Features({"input_features": world.patches}), "b": Features({"input_ids": world.captions[0]})})
    torch.manual_seed(0)
    model = dual_tower(
        Tower(32, width=32, layers=1, out=16), Tower(vocabulary=23, width=32, layers=1, out=16), device="cpu"
    )
    method = objective("filip", keep=0.5)
    before = HeldOut(pairs, method).reports(model)["b_to_a"]["hit@5"]
    report = train(model, pairs, method, Stage(steps=40, rate=3e-3), batch_size=32, device="cpu")
    after = HeldOut(pairs, method).reports(model)["b_to_a"]["hit@5"]
    assert after > before + 0.2
    assert not report.collapsed
    assert report.spread == method.spread > 0.05
    model.save_pretrained(str(tmp_path / "m"), create_model_card=False)
    again = SentenceTransformer(str(tmp_path / "m"), device="cpu", trust_remote_code=True)
    rows = [HeldOut(pairs, method).encoded(m)[1].tokens for m in (model, again)]
    assert torch.equal(rows[0], rows[1])  # pyright: ignore[reportArgumentType]
