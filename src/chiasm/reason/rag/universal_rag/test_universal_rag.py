"""UniversalRAG: the card's identities, routers of every kind, vectors, the generated collection, hostile input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.errors import BadInput, EndpointError, UnknownName
from chiasm.reason.rag import Corpora, Passage, Question
from chiasm.reason.rag.universal_rag import (
    PAPER,
    TARGETS,
    Asked,
    ClassifierRouter,
    EmbeddingRouter,
    EnsembleRouter,
    FixedRouter,
    LabelWordRouter,
    OracleRouter,
    Parents,
    PromptRouter,
    RandomRouter,
    RuleRouter,
    TrainedRouter,
    UniversalRAG,
    closed,
    evaluate,
    exact_match,
    gap,
    mixed,
    parts,
    rouge_l,
    split_all,
    targets,
    token_f1,
)
from chiasm.reason.rag.universal_rag.world import strange_world


def unit_rows(count, seed, dim=16):
    rows = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def three_corpora(shift=0.0):
    corpora = Corpora()
    for place, (name, modality) in enumerate((("paragraph", "text"), ("image", "image"), ("table", "table"))):
        vectors = unit_rows(6, place) + (shift if name == "paragraph" else 0.0)
        corpora.add([Passage(f"{name}-{i}", modality=modality) for i in range(6)], corpus=name, vectors=vectors)
    return corpora


def questions(count=6):
    asked = []
    for place, name in enumerate(("paragraph", "image", "table")):
        rows = unit_rows(6, place)
        asked += [Asked(Question(f"{name} {i}", vector=rows[i]), name, (f"{name}-{i}",)) for i in range(count)]
    return asked


def oracle(asked):
    return OracleRouter({one.question.text: one.corpus for one in asked})


# ---- the card's identities


def test_an_oracle_and_perfect_retrieval_give_accuracy_one():
    asked = questions()
    measured = evaluate(UniversalRAG(three_corpora(), router=oracle(asked)), asked)
    assert measured.accuracy == measured.router_accuracy == 1
    assert measured.recall[1] == measured.true_recall[1] == 1
    assert np.array_equal(measured.confusion, np.diag([6, 6, 6]))


def test_one_corpus_routed_is_plain_retrieval():
    corpora = Corpora()
    corpora.add([Passage(str(i)) for i in range(6)], corpus="paragraph", vectors=unit_rows(6, 0))
    rag = UniversalRAG(corpora, router=FixedRouter("paragraph"))
    question = Question("q", vector=unit_rows(1, 9)[0])
    plain = [p.id for p in corpora(question, "paragraph", 5)]
    assert [p.id for p in rag.retrieve(question)] == plain
    assert [p.id for p in rag.baseline("unified").retrieve(question)] == plain


def test_a_constant_on_one_corpus_changes_the_unified_ranking_only():
    asked = questions()
    shifted = three_corpora(shift=0.5 * asked[6].question.vector)
    for one in asked[6:7]:
        before, after = UniversalRAG(three_corpora()), UniversalRAG(shifted)
        for made in (before, after):
            routed = made.routed(FixedRouter("paragraph")).retrieve(one.question)
            assert [p.id for p in routed] == [
                p.id for p in before.routed(FixedRouter("paragraph")).retrieve(one.question)
            ]
        lifted = [p.corpus for p in after.baseline("unified").retrieve(one.question)].count("paragraph")
        assert lifted > [p.corpus for p in before.baseline("unified").retrieve(one.question)].count("paragraph")


def test_none_never_touches_an_index():
    def never(question, corpus, k):
        raise AssertionError("asked")

    rag = UniversalRAG(never, router=FixedRouter("none"), corpora=["paragraph"])
    assert rag.ask("What is 2 plus 2?").abstained
    assert rag.retrieve("What is 2 plus 2?") == []


def test_a_hit_on_any_part_returns_the_whole_once():
    text = " ".join(f"Sentence {i} speaks of topic{i}." for i in range(60))
    pieces, wholes = split_all([Passage("a_part1", text), Passage("b", "Short.")], words=40)
    assert len(pieces) > 5  # and an id that looks like that of a part is an id like any other
    assert pieces[-1].id == "b"
    corpora = Corpora({"document": pieces})
    found = Parents(corpora, wholes)(Question("topic17 topic31 topic55"), "document", 5)
    assert [p.id for p in found.passages] == ["a_part1"]
    assert found.passages[0].text == text
    rag = UniversalRAG(corpora, router=FixedRouter("document"), wholes=wholes)
    assert [s.id for s in rag.ask("What does the sentence on topic17 speak of?").sources] == ["a_part1"]


@given(st.integers(1, 30), st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_parts_hold_every_sentence_in_order(count, words):
    document = Passage("d", " ".join(f"Word{i} and more." for i in range(count)))
    pieces = parts(document, words=words)
    assert " ".join(piece.text for piece in pieces) == document.text
    assert len({piece.id for piece in pieces}) == len(pieces)


def test_alpha_ends_are_words_only_and_pictures_only():
    words, shown = unit_rows(5, 0), unit_rows(5, 1)
    assert np.allclose(mixed(words, shown, alpha=1), words, atol=1e-6)
    assert np.allclose(mixed(words, shown, alpha=0), shown, atol=1e-6)
    assert np.allclose(np.linalg.norm(mixed(words, shown), axis=1), 1, atol=1e-6)
    assert np.linalg.norm(mixed(words, shown, parity=True), axis=1).max() < 1
    silent = mixed(np.zeros_like(words), shown, alpha=0.9)
    assert np.allclose(silent, shown, atol=1e-6)  # no caption: the picture alone
    with pytest.raises(BadInput):
        mixed(words, shown[:3])


# ---- routers


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_rules_route_their_examples(target):
    for question in target.examples:
        assert RuleRouter().route(question)[0].corpus == target.name, question


def test_shares_are_a_distribution_and_ranked():
    trained = TrainedRouter().fit(["who founded it", "what color is it", "how many are there"] * 2, ["a", "b", "c"] * 2)
    for router in (RuleRouter(), trained, RandomRouter(PAPER), EnsembleRouter([trained, trained], how="mean")):
        for question in ("", "who founded the color?", "\n\nA) x", "é" * 1000):
            routes = router.route(question)
            assert sum(r.share for r in routes) == pytest.approx(1)
            assert [r.share for r in routes] == sorted((r.share for r in routes), reverse=True)
    assert len(trained.route("who?", 2)) == 2


def test_cues_are_whole_words():
    router = RuleRouter(targets("none", "paragraph", "image", "sound"))
    assert router.route("Which barkeeper wrote this?")[0].corpus == "paragraph"  # not the bark of the sound
    assert router.route("What is 12 * 7?")[0].corpus == "none"
    assert RuleRouter(targets("image", "table"), otherwise="table").route("Hm?")[0].corpus == "table"
    with pytest.raises(UnknownName):
        RuleRouter(targets("image"), otherwise="text")
    with pytest.raises(UnknownName):
        targets("movie")


def test_options_of_a_multiple_choice_are_not_the_question():
    router = RuleRouter()
    assert router.route("Who founded it?\nA) a picture\nB) a photo") == router.route("Who founded it?")


def test_the_trained_router_learns_saves_and_loads(tmp_path):
    asked = ["who founded it", "who wrote it", "what color is it", "which color has it"]
    router = TrainedRouter().fit(asked, ["paragraph", "paragraph", "image", "image"])
    assert router.route("what color has the roof")[0].corpus == "image"
    router.save(tmp_path / "r")
    loaded = TrainedRouter.load(tmp_path / "r")
    for question in (*asked, "unseen words only", ""):
        assert loaded.route(question) == router.route(question)  # bit-equal
    again = TrainedRouter().fit(asked, ["paragraph", "paragraph", "image", "image"])
    assert again.route(asked[0]) == router.route(asked[0])
    with pytest.raises(BadInput, match="not fitted"):
        TrainedRouter().route("q")
    with pytest.raises(BadInput, match="two targets"):
        TrainedRouter().fit(["a"], ["b"])
    with pytest.raises(BadInput, match="not a saved router"):
        TrainedRouter.load(tmp_path)


def test_examples_route_by_their_nearest():
    letters = np.eye(26)

    def encoder(texts):
        return np.stack(
            [sum((letters[ord(c) - 97] for c in t.casefold() if c.isalpha()), np.full(26, 1e-3)) for t in texts]
        )

    router = EmbeddingRouter({"a": ["aaa", "aab"], "z": ["zzz", "zzy"]}, encoder)
    assert router.route("aaaab")[0].corpus == "a"
    assert router.route("zy")[0].corpus == "z"
    two = EmbeddingRouter({"a": ["aaa", "zzz"], "z": ["zzz"]}, encoder, neighbors=2)
    assert two.route("zzz")[0].corpus == "z"
    with pytest.raises(BadInput):
        EmbeddingRouter({"a": []}, encoder)
    with pytest.raises(BadInput, match="needs an encoder"):
        EmbeddingRouter()


def test_a_model_routes_or_a_seeded_chance_does():
    said = {"clear": "Image", "not": "not one of them", "no": "no", "quoted": "'table'.", "down": None}

    def ask(messages):
        word = said[messages[-1]["content"].removeprefix("Question: ")]
        if word is None:
            raise EndpointError("is down")
        return word

    router = PromptRouter(ask, targets("none", "image", "table"))
    assert router.route("clear")[0].corpus == "image"
    assert router.route("quoted")[0].corpus == "table"
    chances = [router.route(q)[0].corpus for q in ("not", "no", "down")]
    assert router.failures == 3
    assert [router.route(q)[0].corpus for q in ("not", "no", "down")] == chances

    def broken(messages):
        raise BadInput("wrong key")

    with pytest.raises(BadInput, match="wrong key"):
        PromptRouter(broken).route("q")


def test_the_surest_router_decides():
    a, b = FixedRouter("a"), RandomRouter(["a", "b"], seed=1)
    assert EnsembleRouter([b, a]).route("q")[0].corpus == "a"
    assert EnsembleRouter([a, FixedRouter("b")], how="mean").route("q")[0].share == 0.5
    with pytest.raises(UnknownName):
        EnsembleRouter([a], how="vote")
    with pytest.raises(BadInput):
        EnsembleRouter([])


def test_chance_is_even_and_the_same_every_time():
    router = RandomRouter(PAPER, seed=3)
    chosen = [router.route(f"question {i}")[0].corpus for i in range(600)]
    counts = [chosen.count(name) for name in PAPER]
    assert min(counts) > 60
    assert chosen == [RandomRouter(PAPER, seed=3).route(f"question {i}")[0].corpus for i in range(600)]


def test_routers_of_the_papers_size_on_tiny_models():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        PreTrainedTokenizerFast,
        T5Config,
        T5ForConditionalGeneration,
    )

    words = ["[PAD]", "[UNK]", "who", "founded", "what", "color", "it", "is", "paragraph", "image"]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]")
    import torch

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=10,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        id2label={0: "paragraph", 1: "image"},
        label2id={"paragraph": 0, "image": 1},
    )
    router = ClassifierRouter(BertForSequenceClassification(config), tokenizer)
    asked, wanted = ["who founded it", "what color is it"] * 8, ["paragraph", "image"] * 8
    router.fit(asked, wanted, epochs=20, rate=1e-2, batch_size=8)
    assert [router.route(q)[0].corpus for q in asked[:2]] == wanted[:2]
    with pytest.raises(BadInput, match="unknown"):
        router.fit(["q"], ["movie"])
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=10, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    )
    routes = LabelWordRouter(t5, tokenizer, ["paragraph", "image"], prompt="what is").route("who founded it")
    assert sum(route.share for route in routes) == pytest.approx(1)
    with pytest.raises(BadInput, match="same token"):
        LabelWordRouter(t5, tokenizer, ["movie", "film"])


# ---- the pipeline


def test_routes_to_corpora_that_do_not_exist_are_passed_over():
    rag = UniversalRAG(three_corpora(), router=lambda q: ["video", "image", "clip"])
    assert [r.corpus for r in rag.route("q")] == ["image"]
    lost = UniversalRAG(three_corpora(), router=FixedRouter("video"))
    assert [r.corpus for r in lost.route("q")] == [""]  # none of them: all of them


def test_several_corpora_are_merged():
    rag = UniversalRAG(three_corpora(), router=lambda q: ["image", "table"], routes=2, k=4, merge="round_robin")
    found = rag.retrieve(Question("q", vector=unit_rows(1, 5)[0]))
    assert [p.corpus for p in found] == ["image", "table", "image", "table"]


def test_baselines():
    rag = UniversalRAG(three_corpora())
    question = Question("q", vector=unit_rows(1, 5)[0])
    assert rag.baseline("naive").retrieve(question) == []
    assert {p.corpus for p in rag.baseline("table").retrieve(question)} == {"table"}
    assert len({p.corpus for p in rag.baseline("all").retrieve(question)}) == 3
    assert rag.baseline("random", seed=1).route(question) == rag.baseline("random", seed=1).route(question)
    with pytest.raises(UnknownName):
        rag.baseline("best")


def test_files_go_to_the_corpus_of_their_modality(tmp_path):
    path = tmp_path / "a.md"
    path.write_text(
        "# T\n\nOrla is run by Mira Voss.\n\n| town | output |\n|---|---|\n| Orla | 417 |\n| Brum | 388 |\n"
    )
    rag = UniversalRAG()
    assert rag.add(path) == 2
    assert set(rag.corpora) == {"paragraph", "table"}
    assert rag.ask("Who runs Orla?").sources[0].corpus == "paragraph"
    assert rag.ask("How much is the output of Brum?").sources[0].corpus == "table"
    assert rag.add(path, corpus="document") == 2
    assert "document" in rag.corpora


# ---- the modality gap


def test_the_gap_is_seen_and_closed():
    rows, sides = unit_rows(200, 0), ["text"] * 100 + ["image"] * 100
    shift = np.zeros(16, np.float32)
    shift[0] = 0.6
    apart = np.concatenate([rows[:100] + shift, rows[100:] - shift])
    asked = unit_rows(50, 1) + shift
    far, near = gap(apart, sides, asked), gap(closed(apart, sides), sides, asked)
    assert far["text"] - far["image"] > 0.6
    assert abs(near["text"] - near["image"]) < 0.05
    assert np.array_equal(apart[:100], rows[:100] + shift)  # inputs stay


def test_the_world_shows_the_gap_and_its_absence():
    world = strange_world(33, seed=1000)
    asked = [q for q in world.questions(0, strangers=False, count=8, seed=1) if q.corpus == "image"]
    rag = UniversalRAG(world.corpora, router=RuleRouter())
    unified, routed = evaluate(rag.baseline("unified"), asked), evaluate(rag, asked)
    assert set(unified.first_modality) == {"text"}
    assert set(routed.first_modality) == {"image"}
    assert routed.accuracy > unified.accuracy
    # The negative control: with no gap and a perfect tower one index is as good.
    aligned = strange_world(33, seed=1000, offset=0.0, aligned=True)
    asked = [q for q in aligned.questions(0, strangers=False, count=8, seed=1) if q.corpus != "none"]
    one, many = evaluate(UniversalRAG(aligned.corpora).baseline("unified"), asked), oracle(asked)
    assert evaluate(UniversalRAG(aligned.corpora, router=many), asked).accuracy - one.accuracy <= 0.05
    assert strange_world(9, seed=1).towns == strange_world(9, seed=1).towns
    with pytest.raises(BadInput):
        strange_world(10)
    with pytest.raises(BadInput):
        world.questions(3, strangers=False, count=1, seed=0)


# ---- scores of answers


def test_scores_of_answers():
    assert exact_match("The Eiffel Tower!", ["eiffel tower"]) == 1
    assert exact_match("Eiffel", ["eiffel tower"]) == 0
    assert token_f1("the red tower", ["a tower"]) == pytest.approx(2 / 3)
    assert token_f1("", [""]) == 1
    assert token_f1("x", []) == 0
    assert rouge_l("a b c d", ["a c d e"]) == pytest.approx(0.75)
    with pytest.raises(BadInput, match="no questions"):
        evaluate(UniversalRAG(three_corpora()), [])
