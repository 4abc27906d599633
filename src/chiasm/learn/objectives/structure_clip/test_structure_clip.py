"""Structure-CLIP: sentences and their exact negatives, closed forms of the losses, invariances of the encoder (card: unit tests)."""

import re
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize

from chiasm.errors import BadInput, UnknownName
from chiasm.learn import Features, HeldOut, InfoNCE, Pairs, Stage, train
from chiasm.learn.held_out import Encoded
from chiasm.learn.objectives.structure_clip import (
    Drawn,
    KnowledgeEncoder,
    KnowledgeTower,
    Structure,
    StructureCLIP,
    combined,
    negatives,
    pair_accuracy,
    parse,
    structure_hinge,
    swap,
    triple_ids,
    triple_tokens,
    with_structure,
)
from chiasm.learn.objectives.structure_clip.columns import COLUMN
from chiasm.learn.objectives.structure_clip.trial import run as run_trial
from chiasm.learn.towers import Tower, dual_tower
from chiasm.learn.trial import Trial
from chiasm.learn.words import Words
from chiasm.worlds.patches import COLORS
from chiasm.worlds.roles import ANIMALS, VERBS, role_scenes

# Written by hand: caption, triples as "head|relation|tail", negatives.
SENTENCES = [
    ("a red cube on a blue ball", "red cube|on|blue ball; cube|is|red; ball|is|blue", "a blue ball on a red cube; a blue cube on a red ball"),
    ("An astronaut rides a horse", "astronaut|rides|horse", "a horse rides an astronaut"),
    ("a man next to a woman", "man|next to|woman", ""),
    ("a woman and a man", "", ""),
    ("red dog chases blue cat", "red dog|chases|blue cat; dog|is|red; cat|is|blue", "blue cat chases red dog; blue dog chases red cat"),
    ("Two dogs chase a white cat.", "dogs|chase|white cat; cat|is|white", "a white cat chase two dogs."),
    ("The ball is being kicked by a young boy.", "ball|kicked by|young boy; boy|is|young", "a young boy is being kicked by the ball."),
    ("A group of people watching a woman cutting a cake.", "group of people|watching|woman; woman|cutting|cake", "a woman watching a group of people cutting a cake.; a group of people watching a cake cutting a woman."),
    ("The car is red and the bus is blue.", "car|is|red; bus|is|blue", "the car is blue and the bus is red."),
    ("a big green bus in front of a small house", "big green bus|in front of|small house; bus|is|big; bus|is|green; house|is|small", "a small house in front of a big green bus; a small bus in front of a big green house"),
    ("a red cube and a red ball", "cube|is|red; ball|is|red", ""),
    ("a red cube on a blue cube", "red cube|on|blue cube; cube|is|red; cube|is|blue", "a blue cube on a red cube"),
    ("a woman with a man", "woman|with|man", ""),
    ("the man feeds the woman", "man|feeds|woman", "the woman feeds the man"),
    ("a black and white dog under a brown table", "black and white dog|under|brown table; dog|is|black and white; table|is|brown", "a brown table under a black and white dog; a brown dog under a black and white table"),
    ("a cat is sleeping on a sofa", "cat|sleeping on|sofa", "a sofa is sleeping on a cat"),
    ("a boy and a girl holding a large umbrella", "girl|holding|large umbrella; umbrella|is|large", "a boy and a large umbrella holding a girl"),
    ("A man who is wearing a blue shirt throws a frisbee.", "man|wearing|blue shirt; man|throws|frisbee; shirt|is|blue", "a blue shirt who is wearing a man throws a frisbee.; a frisbee who is wearing a blue shirt throws a man."),
    ("three birds", "", ""),
    ("There is a cup on a wooden table", "cup|on|wooden table; table|is|wooden", "there is a wooden table on a cup"),
    ("a girl in a yellow dress is painting a picture", "girl|in|yellow dress; girl|painting|picture; dress|is|yellow", "a yellow dress in a girl is painting a picture; a picture in a yellow dress is painting a girl"),
    ("a parked car behind a tall tree", "parked car|behind|tall tree; car|is|parked; tree|is|tall", "a tall tree behind a parked car; a tall car behind a parked tree"),
    ("a tennis player hits a ball", "tennis player|hits|ball", "a ball hits a tennis player"),
    ("a dog chasing a dog", "dog|chasing|dog", ""),
    ("people walking down a street", "people|walking down|street", "a street walking down people"),
    ("a bird sitting beside a cat", "bird|sitting beside|cat", ""),
    ("an orange cat on a gray mat", "orange cat|on|gray mat; cat|is|orange; mat|is|gray", "a gray mat on an orange cat; an gray cat on a orange mat"),
    ("a man pushing a woman", "man|pushing|woman", "a woman pushing a man"),
    ("a car parked on a street", "car|parked on|street", "a street parked on a car"),
    ("a man who is hugging a woman near a tree", "man|hugging|woman; woman|near|tree", ""),
]  # fmt: skip


def parts(text):
    return [part for part in text.split("; ") if part]


def unit(n, d=8, seed=0):
    return normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=-1)


# ---- the parser and its negatives


@pytest.mark.parametrize(("caption", "triples", "false"), SENTENCES)
def test_sentences_by_hand(caption, triples, false):
    assert ["|".join(triple) for triple in parse(caption).triples()] == parts(triples)
    assert [negative.text for negative in negatives(caption)] == parts(false)


@pytest.mark.parametrize("caption", [s[0] for s in SENTENCES])
def test_negatives_have_the_same_words_in_another_order(caption):
    for negative in negatives(caption):
        assert Counter(re.findall(r"\w+", negative.text)) == Counter(re.findall(r"\w+", caption.lower()))
        assert negative.text != caption.lower()


def test_a_swap_applied_twice_restores_the_text():
    caption = "a red cube on a blue ball"
    for kind in ("relation", "attribute"):
        assert swap(swap(caption, kind), kind) == caption
    assert swap("a man with a hat", "relation") is None
    with pytest.raises(UnknownName, match="relation"):
        negatives(caption, ["relatio"])


def test_the_paper_file_takes_the_relation_first():
    found = combined(["a red cube on a blue ball", "a red cube next to a blue ball", "a ball"])
    assert [n and (n.kind, n.label) for n in found] == [("relation", "on"), ("attribute", "blue / red"), None]


def test_the_lexicon_can_grow():
    assert parse("a zorgle dog").triples() == []
    assert parse("a zorgle dog", adjectives={"zorgle"}).triples() == [("dog", "is", "zorgle")]
    assert parse("a dog zorgles a cat", verbs={"zorgle"}).triples() == [("dog", "zorgles", "cat")]


@pytest.mark.parametrize("kind", ["relation", "attribute"])
def test_the_parser_agrees_with_the_grammar_of_the_scenes(kind):
    world = role_scenes(200, seed=5)
    graphs = [parse(text) for text in world.texts]
    for i, graph in enumerate(graphs):
        colors, animals = (
            [names[k] for k in row[i]] for names, row in ((COLORS, world.color), (ANIMALS, world.animal))
        )
        (relation,) = graph.relations
        assert (relation.text, [m.head for m in graph.mentions]) == (VERBS[world.verb[i]], animals)
        assert [m.attributes for m in graph.mentions] == [(c,) for c in colors]
    assert [swap(graph, kind) for graph in graphs] == world.swapped(kind)


@pytest.mark.parametrize(
    "caption", ["a red dog chases a blue cat", "a big cube on a small red ball", "the car is red and the bus is blue"]
)
def test_the_graph_of_a_negative_is_that_of_its_text(caption):
    for negative in negatives(caption):
        assert negative.graph.triples() == parse(negative.text).triples()
        assert negative.graph.triples() != parse(caption).triples()


@given(st.text(max_size=80))
@settings(max_examples=60, deadline=None)
def test_any_text_has_a_graph(text):
    graph = parse(text)
    for mention in graph.mentions:
        assert mention.head in graph.text
    for negative in negatives(graph):
        assert sorted(negative.text) == sorted(graph.text)


@given(
    st.lists(
        st.sampled_from(
            [
                "a",
                "the",
                "red",
                "blue",
                "dog",
                "man",
                "on",
                "in",
                "is",
                "riding",
                "rides",
                "and",
                ",",
                "who",
                "to",
                "of",
                "group",
                "next",
            ]
        ),
        max_size=14,
    )
)
@settings(max_examples=150, deadline=None)
def test_negatives_keep_the_characters_of_odd_sentences(words):
    text = " ".join(words)
    for negative in negatives(text):
        assert sorted(negative.text.split()) == sorted(text.split())


# ---- the knowledge encoder


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return KnowledgeEncoder(30, width=16, out=8)


def test_triples_are_directed_padding_and_order_do_not_matter(encoder):
    one, other = torch.tensor([[[[3, 0], [4, 0], [5, 6]]]]), torch.tensor([[[[5, 6], [4, 0], [3, 0]]]])
    assert not torch.allclose(encoder(one), encoder(other), atol=1e-3)
    padded = torch.cat([one, torch.zeros(1, 4, 3, 2, dtype=torch.int64)], 1)
    torch.testing.assert_close(encoder(padded), encoder(one))
    torch.testing.assert_close(encoder(torch.nn.functional.pad(one, (0, 3))), encoder(one))
    both = torch.cat([one, other], 1)
    torch.testing.assert_close(encoder(both), encoder(both.flip(1)))
    torch.testing.assert_close(encoder(both).norm(dim=-1), torch.ones(1))


def test_an_empty_graph_is_zero_and_harms_no_gradient(encoder):
    triples = torch.zeros(2, 6, 3, 5, dtype=torch.int64)
    triples[1, 0, :, 0] = torch.tensor([3, 4, 5])
    k = encoder(triples)
    assert torch.equal(k[0], torch.zeros(8))
    assert k[1].norm() > 0.9
    k.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())
    assert encoder(torch.zeros(3, 2, 6, 3, 5, dtype=torch.int64)).shape == (3, 2, 8)
    with pytest.raises(BadInput, match="triples of shape"):
        encoder(torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(UnknownName, match="mean"):
        KnowledgeEncoder(9, pool="meen")  # pyright: ignore[reportArgumentType]


def test_triple_tokens_in_closed_form():
    e = torch.randn(4, 7)
    assert torch.equal(triple_tokens(e, torch.zeros(4, 7), e), torch.zeros(4, 7))
    assert triple_tokens(torch.tensor([3.0]), torch.tensor([2.0]), torch.tensor([1.0])).item() == 4.0


def test_bert_gives_embeddings_and_its_first_layers():
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32)
    bert = BertModel(config).eval()
    made = KnowledgeEncoder.of_bert(bert, 8, layers=2).eval()
    assert torch.equal(made.words.word_embeddings.weight, bert.embeddings.word_embeddings.weight)
    assert len(made.encoder.layer) == 2
    one = torch.tensor([[[[3, 0], [4, 0], [5, 6]]]])
    padded = torch.cat([one, torch.zeros_like(one)], 1)
    torch.testing.assert_close(made(padded), made(one), atol=1e-5, rtol=1e-4)
    again = KnowledgeEncoder(**made.settings).eval()
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(one), made(one))


def known_tower(strength=0.2):
    texts = ["a red dog chases a blue cat", "a blue cat chases a red dog"]
    words = Words.of(texts)
    torch.manual_seed(0)
    tower = KnowledgeTower([Tower(vocabulary=len(words), width=16, layers=1, out=8)], KnowledgeEncoder(len(words), width=16, out=8), words=words, strength=strength)  # fmt: skip
    return dual_tower(Tower(4, width=16, layers=1, out=8), tower).eval(), texts, words


def test_knowledge_adds_to_a_unit_vector_and_nothing_without_a_graph():
    model, texts, words = known_tower()
    batch = {"input_ids": torch.tensor(np.stack(words.ids(texts))), "task": "b"}
    triples = torch.from_numpy(triple_ids([parse(t) for t in texts], words))
    bare = model(dict(batch))
    torch.testing.assert_close(bare["sentence_embedding"].norm(dim=-1), torch.ones(2))
    assert torch.equal(
        model({**batch, "triples": torch.zeros_like(triples)})["sentence_embedding"], bare["sentence_embedding"]
    )
    full = model({**batch, "triples": triples})
    torch.testing.assert_close(
        (full["sentence_embedding"] - full["plain_embedding"]).norm(dim=-1), torch.full((2,), 0.2)
    )


def test_a_saved_tower_parses_sentences_and_gives_the_same_bits(tmp_path):
    model, texts, _ = known_tower()
    before = model.encode(texts, task="b", convert_to_tensor=True)
    model.save_pretrained(str(tmp_path), create_model_card=False)
    after = SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=True).encode(
        texts, task="b", convert_to_tensor=True
    )
    assert torch.equal(before.cpu(), after)
    assert (before.norm(dim=-1) - 1).abs().max() > 1e-3


# ---- the losses


def total(parts):
    return torch.stack(list(parts.values())).sum()


def test_without_weight_it_is_the_plain_contrastive_loss():
    a, b, negative = unit(6), unit(6, seed=1), unit(12, seed=2).reshape(6, 2, 8)
    plain = total(InfoNCE()(a, b))
    torch.testing.assert_close(total(StructureCLIP(weight=0)(3 * a, 2 * b, negative=negative)), plain)
    torch.testing.assert_close(total(StructureCLIP()(a, b)), plain)
    none = torch.zeros(6, 2, dtype=torch.bool)
    torch.testing.assert_close(total(StructureCLIP()(a, b, negative=negative, negative_present=none)), plain)


def test_the_hinge_in_closed_form():
    a = torch.tensor([[1.0, 0.0]])
    for false, loss in ((0.65, 0.15), (0.4, 0.0)):
        own, other = torch.tensor([[0.7, 0.0]]), torch.tensor([[[false, 0.0]]])
        assert structure_hinge(a, own, other, torch.ones(1, 1, dtype=torch.bool), 0.2).item() == pytest.approx(
            loss, abs=1e-6
        )


def test_the_hinge_equals_a_double_loop_and_leaves_missing_ones_out():
    a, b, negative = unit(5), unit(5, seed=1), unit(15, seed=2).reshape(5, 3, 8)
    present = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)) < 0.6
    terms = [
        max(0.0, 0.2 - float(a[i] @ b[i]) + float(a[i] @ negative[i, k]))
        for i in range(5)
        for k in range(3)
        if present[i, k]
    ]
    found = StructureCLIP(weight=2.0)(a, b, negative=negative, negative_present=present)["structure"]
    assert found.item() == pytest.approx(2 * np.mean(terms), rel=1e-5)
    spoiled = negative.masked_fill(~present.unsqueeze(-1), 7.0)
    assert StructureCLIP(weight=2.0)(a, b, negative=spoiled, negative_present=present)[
        "structure"
    ].item() == pytest.approx(found.item(), rel=1e-6)


def test_the_denominator_takes_the_negatives_that_are_there():
    a, b, negative = unit(4), unit(4, seed=1), unit(4, seed=2)
    present = torch.tensor([[True], [False], [True], [True]])
    found = StructureCLIP(weight=0, denominator=True)(a, b, negative=negative, negative_present=present)
    scores = 20 * torch.cat([a @ b.T, a @ negative[present[:, 0]].T], 1)
    forth = torch.nn.functional.cross_entropy(scores, torch.arange(4)) / 2
    torch.testing.assert_close(found["a_to_b"], forth)
    torch.testing.assert_close(found["b_to_a"], torch.nn.functional.cross_entropy(20 * b @ a.T, torch.arange(4)) / 2)


@pytest.mark.parametrize("early", [True, False])
def test_the_triplet_equals_a_double_loop(early):
    a, b = unit(6), unit(6, seed=1)
    groups = torch.tensor([0, 0, 1, 2, 3, 3])
    objective = StructureCLIP(itc="triplet")
    objective.on_progress(5 if early else 500, 1000)
    found = objective(a, b, groups=groups)
    s = (a @ b.T).numpy()
    text, image = [], []
    for i in range(6):
        others = [j for j in range(6) if groups[j] != groups[i]]
        against = np.mean([s[i, j] for j in others]) if early else max(s[i, j] for j in others)
        text.append(max(0, 0.2 - s[i, i] + against))
        image.append(max(0, 0.2 - s[i, i] + max(s[j, i] for j in others)))
    assert found["a_to_b"].item() == pytest.approx(np.mean(text), rel=1e-5)
    assert found["b_to_a"].item() == pytest.approx(np.mean(image), rel=1e-5)
    assert total(objective(a[:1], b[:1])).item() == 0
    assert total(objective(a, b, groups=torch.zeros(6, dtype=torch.int64))).item() == 0


def test_knowledge_is_not_scaled_away_and_text_means_without_it():
    a, plain, wrong = unit(4), unit(4, seed=1), unit(4, seed=2)
    fused = plain + 0.2 * unit(4, seed=3)
    objective = StructureCLIP(fused=True)
    torch.testing.assert_close(objective.similarity(Encoded(5 * a), Encoded(fused)), a @ fused.T)
    torch.testing.assert_close(objective.paired(Encoded(a), Encoded(fused)), (a @ fused.T).diagonal())
    released = StructureCLIP(fused=True, parity=True)
    given = released(a, fused, negative=wrong + 0.1, b_plain=plain, negative_plain=wrong)["structure"]
    wanted = 5 * structure_hinge(a, plain, wrong.unsqueeze(1), torch.ones(4, 1, dtype=torch.bool), 0.1)
    torch.testing.assert_close(given, wanted)
    with pytest.raises(BadInput, match="KnowledgeTower"):
        released(a, fused, negative=wrong)


def test_the_weight_of_the_negatives_rises_and_is_kept():
    a, b, negative = unit(4), unit(4, seed=1), unit(4, seed=2)
    objective = StructureCLIP(warmup=0.5)
    full = objective(a, b, negative=negative)["structure"]
    objective.on_progress(25, 100)
    torch.testing.assert_close(objective(a, b, negative=negative)["structure"], full / 2)
    again = StructureCLIP(warmup=0.5)
    again.load_state_dict(objective.state_dict())
    torch.testing.assert_close(again(a, b, negative=negative)["structure"], full / 2)
    objective.on_progress(60, 100)
    torch.testing.assert_close(objective(a, b, negative=negative)["structure"], full)


def test_gradients_reach_negatives_and_identical_pairs_are_finite():
    a, b, negative = (x.clone().requires_grad_() for x in (unit(4), unit(4, seed=1), unit(4, seed=2)))
    total(StructureCLIP(denominator=True)(a, b, negative=negative)).backward()
    assert all(x.grad is not None and x.grad.abs().max() > 0 for x in (a, b, negative))
    same = torch.ones(3, 8)
    for objective in (StructureCLIP(), StructureCLIP(parity=True)):
        assert torch.isfinite(total(objective(same, same, negative=same)))


def test_options_that_do_not_exist_are_refused():
    with pytest.raises(UnknownName, match="infonce"):
        StructureCLIP(itc="infonc")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnknownName, match="fused"):
        StructureCLIP(neg_on="fuse")  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadInput, match="margin"):
        StructureCLIP(margin=-1)


# ---- evaluation


def test_macro_and_micro_accuracy():
    result = pair_accuracy([1.0, 0.0, 1.0], [0.0, 1.0, 0.0], ["x", "x", "y"])
    assert result.macro == pytest.approx(0.75)
    assert result.micro == pytest.approx(2 / 3)
    assert result.by_label == {"x": 0.5, "y": 1.0}
    assert pair_accuracy([1.0], [1.0]).micro == 0, "a tie is a miss"
    assert pair_accuracy([float("nan")], [1.0]).micro == 0
    kept = pair_accuracy([1.0, 1.0, 0.0], [0.0, 0.0, 1.0], ["on", "next to", "under"])
    assert list(kept.labels) == ["on", "under"]
    assert len(pair_accuracy([1.0, 1.0, 1.0], [0.0] * 3, ["on", "on", "in"], least=2).hits) == 2
    assert np.isnan(pair_accuracy([], []).macro)
    with pytest.raises(BadInput, match="scores"):
        pair_accuracy([1.0], [1.0, 2.0])


# ---- columns and training


def columns(knowledge=True):
    texts = ["red dog chases blue cat", "three birds", "red dog next to red cat", "a man on a horse"]
    words = Words.of(texts)

    def features(some):
        return Features.ragged("input_ids", words.ids(some))

    pairs = Pairs({"a": Features({"input_features": np.eye(4, dtype=np.float32)}), "b": features(texts)})
    return with_structure(pairs, texts, features, words=words if knowledge else None), words


def test_columns_hold_negatives_and_triples_of_each_caption():
    pairs, words = columns()
    assert pairs.rows[COLUMN].tolist() == [0, -1, -1, 3]
    source = pairs.source(COLUMN)
    assert isinstance(source, Drawn)
    seen = {" ".join(words.words(source.batch([0])["input_ids"][0].tolist())) for _ in range(30)}
    assert seen == {"blue cat chases red dog", "blue dog chases red cat"}
    batch = source.batch([3, -1])
    assert batch["rows"].tolist() == [2, -1]
    assert batch["triples"].shape == (2, 6, 3, 5)
    assert words.words(batch["triples"][0, 0, :, 0].tolist()) == ["horse", "on", "man"]
    assert pairs.source("b").batch([1])["triples"].sum() == 0
    assert "triples" not in columns(False)[0].source("b").batch([0])
    with pytest.raises(BadInput, match="captions for"):
        with_structure(pairs, ["one"], lambda texts: Features.ragged("input_ids", texts))


def test_other_languages_give_no_graph_and_no_column():
    texts = ["một người đàn ông cưỡi ngựa", "hai con chó đang chạy", "cô gái mặc áo đỏ"]
    structure = Structure.of(texts)
    assert structure.parsed == structure.covered == 0
    pairs = Pairs(
        {"a": Features({"input_features": np.eye(3, dtype=np.float32)}), "b": Features.ragged("input_ids", [[3]] * 3)}
    )
    assert with_structure(pairs, texts, lambda t: Features.ragged("input_ids", t), structure=structure).columns == [
        "a",
        "b",
    ]


@pytest.mark.parametrize("options", [{}, {"parity": True}, {"denominator": True, "neg_on": "text"}])
def test_training_reaches_every_part(options):
    pairs, words = columns()
    torch.manual_seed(0)
    knowledge = KnowledgeEncoder(len(words), width=16, out=8)
    text = KnowledgeTower([Tower(vocabulary=len(words), width=16, layers=1, out=8)], knowledge, words=words)
    model = dual_tower(Tower(4, width=16, layers=1, out=8), text, device="cpu")
    before = {name: p.detach().clone() for name, p in knowledge.named_parameters()}
    objective = StructureCLIP(fused=True, warmup=0.0, **options)
    report = train(
        model, pairs, objective, Stage(steps=4, rate=1e-2), batch_size=4, routes={"negative": "b"}, log_every=1
    )
    assert np.isfinite(report.losses).all()
    changed = [name for name, p in knowledge.named_parameters() if not torch.equal(p, before[name])]
    assert "words.word.weight" in changed
    assert "leave.weight" in changed


@pytest.mark.parametrize("english", [True, False])
def test_a_trial_uses_graphs_where_the_texts_are_english(english):
    world = role_scenes(40, seed=0)
    texts = world.texts if english else ["một người đàn ông cưỡi ngựa", "hai con chó đang chạy"] * 20
    words = Words.of(texts)
    source = Features.ragged("input_ids", words.ids(texts))
    pairs = Pairs({"a": Features({"input_features": world.patches}), "b": source})
    trial = Trial(
        "scenes",
        pairs[:30],
        pairs[30:],
        lambda: dual_tower(
            Tower(32, width=16, layers=1, out=8), Tower(vocabulary=len(words), width=16, layers=1, out=8), device="cpu"
        ),
        texts,
        steps=3,
        batch_size=8,
    )
    model, objective = run_trial(trial)
    assert objective.fused is english
    a, b = HeldOut(trial.test, objective).encoded(model)
    if english:  # test captions carry the knowledge of their own graphs
        model[0].sub_modules["b"][0].strength = 0.0
        plain = HeldOut(trial.test, objective).encoded(model)[1].vectors
        torch.testing.assert_close((b.vectors - plain).norm(dim=-1), torch.full((len(plain),), 0.2))
    assert torch.isfinite(objective.similarity(a, b)).all()
