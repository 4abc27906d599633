"""`ExtractiveGenerator`: the answer is the sentence that fits best, word for word from its source. No model is asked.

    score(sentence) = (1 - words) * cosine(question, sentence in its section) + words * overlap + prior / rank of its passage

Overlap is the share of the question's content words that the sentence holds, rare words first
(`chiasm.reason.rag.words.overlap`). What cannot be quoted (a picture without words) is pointed at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from chiasm.errors import BadInput
from chiasm.reason.rag.encoder import text_encoder
from chiasm.reason.rag.messages import Draft, Passage, Question
from chiasm.reason.rag.sentences import sentence_spans
from chiasm.reason.rag.words import overlap

# Sentences that are compared at most; the passages are cut evenly, best first.
MAX_SENTENCES = 200
# Longer runs without an end are cut: a quote should be read at a glance.
MAX_CHARACTERS = 700
# A second sentence that says the same again is not added.
SAME = 0.9


@dataclass(frozen=True, slots=True)
class _Candidate:
    passage: int  # place of the passage, 0 is the best
    order: int  # place in the passage
    said: str  # as it enters the answer
    quote: str  # as it stands in the passage
    compared: str  # as it is compared


class ExtractiveGenerator:
    """Answers with sentences of the passages.

    Args:
        encoder: a `chiasm.Space` or a function ``texts -> [N, D]``; None compares words only.
        sentences: most sentences of an answer; all but the best must come close to it.
        words: weight of the words in common, in [0, 1]; 1 where there is no encoder.
        prior: weight of ``1 / rank`` of the passage.
        close: share of the best score that a further sentence must reach.
        least: lowest score of the best sentence; below, the generator abstains. None: any word in common will do
            without an encoder, and any score with one.

    Raises:
        BadInput: numbers out of range.
    """

    def __init__(
        self,
        encoder: Any = None,
        *,
        sentences: int = 2,
        words: float = 0.3,
        prior: float = 0.1,
        close: float = 0.9,
        least: float | None = None,
    ) -> None:
        if sentences < 1 or not 0 <= words <= 1 or prior < 0 or not 0 <= close <= 1:
            raise BadInput(
                f"sentences={sentences}, words={words}, prior={prior}, close={close}", where="ExtractiveGenerator"
            )
        self.encoder = None if encoder is None else text_encoder(encoder)
        self.sentences, self.words, self.prior, self.close, self.least = sentences, words, prior, close, least

    def __call__(self, question: Question, passages: Sequence[Passage], /) -> Draft:
        """The best sentences, best first, with their passages; abstains where nothing comes near the question."""
        if not passages:
            return Draft.none("there is no passage to answer from")
        candidates = _candidates(passages)
        if not candidates:
            return Draft.none("the passages hold nothing to quote")
        asked = question.text.strip()
        held = overlap(asked, [c.compared for c in candidates])
        score, vectors = held, None
        if self.encoder is not None and asked:
            vectors = self.encoder([c.compared for c in candidates], "document")
            score = (1 - self.words) * (vectors @ self.encoder([asked], "query")[0]) + self.words * held
        rank = np.array([c.passage for c in candidates]) + 1
        total = score + self.prior / rank
        best = int(np.argmax(total))
        least = self.least if self.least is not None else (0.0 if vectors is not None else 1e-9)
        if score[best] < least:
            return Draft.none("no sentence of the passages comes near the question")
        chosen = self._choose(candidates, total, vectors, best)
        used = list(dict.fromkeys(passages[candidates[c].passage].id for c in chosen))
        quotes = {
            name: " … ".join(candidates[c].quote for c in chosen if passages[candidates[c].passage].id == name)
            for name in used
        }
        said = " ".join(_ended(candidates[c].said) for c in chosen)
        return Draft(said, tuple(used), quotes, confidence=float(np.clip(score[best], 0, 1)))

    def _choose(
        self, candidates: list[_Candidate], total: np.ndarray, vectors: np.ndarray | None, best: int
    ) -> list[int]:
        """The best sentence and those close to it that say something else."""
        chosen = [best]
        for place in np.argsort(-total, kind="stable").tolist():
            if len(chosen) == self.sentences or total[place] < self.close * total[best]:
                break
            texts = {candidates[c].compared for c in chosen} | {candidates[c].said for c in chosen}
            if candidates[place].compared in texts or candidates[place].said in texts:
                continue
            if vectors is not None and max(float(vectors[place] @ vectors[c]) for c in chosen) >= SAME:
                continue
            chosen.append(place)
        return chosen


def _candidates(passages: Sequence[Passage]) -> list[_Candidate]:
    share = max(1, MAX_SENTENCES // len(passages))
    found: list[_Candidate] = []
    for place, passage in enumerate(passages):
        if passage.modality == "table" or ("rows" in passage.meta and passage.modality == "text"):
            parts = _rows(passage)
        elif passage.text.strip():
            parts = _sentences(passage)
        else:
            parts = [_pointer(passage)]
        for order, (said, quote, compared) in enumerate(parts[:share]):
            found.append(_Candidate(place, order, said, quote, compared))
    return found


def _sentences(passage: Passage) -> list[tuple[str, str, str]]:
    """Sentences; each is compared with its section's heading before it, which often names what it is about."""
    spans = [(0, len(passage.text))] if passage.modality == "equation" else sentence_spans(passage.text)
    heading = " ".join(str(passage.meta.get("heading", "")).split())
    parts = []
    for start, end in spans:
        quote = passage.text[start:end][:MAX_CHARACTERS]
        said = " ".join(quote.split())
        if heading and said.casefold() == heading.casefold():
            continue  # a heading alone answers nothing
        parts.append((said, quote, f"{heading}: {said}" if heading else said))
    return parts


def _rows(passage: Passage) -> list[tuple[str, str, str]]:
    """Rows of a table, each said with the names of its columns."""
    lines = [line for line in passage.text.split("\n") if line.strip()]
    if len(lines) < 2 or "|" not in lines[0]:
        return [(" ".join(line.split()), line, line) for line in lines]
    names = [name.strip() for name in lines[0].strip(" |").split("|")]
    title = str(passage.meta.get("caption") or passage.meta.get("sheet") or passage.meta.get("heading") or "")
    parts = []
    for line in lines[1:]:
        cells = [cell.strip() for cell in line.strip(" |").split("|")]
        if not any(any(c.isalnum() for c in cell) for cell in cells):
            continue  # the rule below a header
        pairs = [f"{name}: {cell}" if name else cell for name, cell in zip(names, cells, strict=False) if cell]
        said = "; ".join(pairs + [cell for cell in cells[len(names) :] if cell])[:MAX_CHARACTERS]
        parts.append((said, line[:MAX_CHARACTERS], f"{title}: {said}" if title else said))
    return parts


def _pointer(passage: Passage) -> tuple[str, str, str]:
    """What can only be pointed at."""
    kind = {"image": "picture", "audio": "recording", "video": "clip"}.get(passage.modality, passage.modality)
    name = PurePath(passage.uri).name
    where = " of ".join(part for part in (passage.locator, name) if part) or passage.id
    about = str(passage.meta.get("caption") or passage.meta.get("title") or "")
    return f"See the {kind}: {where}", "", f"a {kind} {about}".strip()


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith((".", "!", "?", "…", "。", "！", "？", ":", ";")) else f"{sentence}."
