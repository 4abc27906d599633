"""What a routed collection is worth: router accuracy and confusion, recall within and from end to end, answer scores."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from chiasm.errors import BadInput
from chiasm.reason.rag.messages import Question, Retrieved
from chiasm.reason.rag.pipeline import NONE, Pipeline


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its truth.

    Args:
        question: words (and perhaps a vector).
        corpus: the target that it needs.
        gold: ids of the passages that answer it, empty for ``"none"``.
        answers: right answers in words, if known.
    """

    question: Question
    corpus: str
    gold: Collection[str] = ()
    answers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures of one pipeline over Q questions.

    Args:
        names: corpora, rows and columns of the confusion matrix.
        confusion: int ``[R, R]``, true target by chosen one.
        routed_right: bool ``[Q]``.
        first_right: bool ``[Q]``: the first passage is gold; for ``"none"``: nothing was retrieved.
        first_modality: the modality of each question's first passage, ``""`` where there is none.
        recall: share of questions with gold among the first k, by k, over those that need a corpus.
        true_recall: the same with the true corpus asked: what retrieval alone can do.
    """

    names: tuple[str, ...]
    confusion: np.ndarray
    routed_right: np.ndarray
    first_right: np.ndarray
    first_modality: tuple[str, ...]
    recall: dict[int, float]
    true_recall: dict[int, float]

    @property
    def router_accuracy(self) -> float:
        return float(self.routed_right.mean())

    @property
    def accuracy(self) -> float:
        """Share of questions whose first passage is right (nothing retrieved, where nothing is needed)."""
        return float(self.first_right.mean())


def evaluate(pipeline: Pipeline, asked: Sequence[Asked], *, ks: Sequence[int] = (1, 5, 10)) -> Evaluation:
    """Runs the questions through routing and retrieval.

    The same passages are ranked for both recalls, so that ``recall <= true_recall`` up to ties for a router that is
    never luckier than the truth.

    Raises:
        BadInput: no questions.
    """
    if not asked:
        raise BadInput("no questions", where="evaluate")
    deepest = max(ks)
    chosen, firsts, first_right, found, possible = [], [], [], [], []
    for one in asked:
        routes = _routes(pipeline, one.question)
        chosen.append(routes[0])
        passages = _retrieve(pipeline, one.question, routes, deepest)
        ids = [passage.id for passage in passages]
        firsts.append(passages[0].modality if passages else "")
        first_right.append(not ids if one.corpus == NONE else bool(ids) and ids[0] in one.gold)
        if one.corpus != NONE:
            found.append(_first_hit(ids, one.gold))
            true = _retrieve(pipeline, one.question, [one.corpus], deepest)
            possible.append(_first_hit([passage.id for passage in true], one.gold))
    names = tuple(dict.fromkeys([*(one.corpus for one in asked), *chosen]))
    confusion = np.zeros((len(names), len(names)), np.int64)
    for one, route in zip(asked, chosen, strict=True):
        confusion[names.index(one.corpus), names.index(route)] += 1
    return Evaluation(
        names,
        confusion,
        np.array([one.corpus == route for one, route in zip(asked, chosen, strict=True)]),
        np.array(first_right, bool),
        tuple(firsts),
        {k: float(np.mean([rank < k for rank in found])) if found else 0.0 for k in ks},
        {k: float(np.mean([rank < k for rank in possible])) if possible else 0.0 for k in ks},
    )


def _routes(pipeline: Pipeline, question: Question) -> list[str]:
    said = pipeline.router(question)
    several = [said] if isinstance(said, str) or not isinstance(said, Sequence) else list(said)
    return [route if isinstance(route, str) else route.corpus for route in several][: pipeline.routes]


def _retrieve(pipeline: Pipeline, question: Question, routes: Sequence[str], k: int) -> list:
    lists = []
    for corpus in routes:
        if corpus != NONE:
            got = pipeline.retriever(question, corpus, k)
            lists.append(list(got.passages if isinstance(got, Retrieved) else got))
    if len(lists) == 1:
        return lists[0][:k]
    from chiasm.reason.rag.merge import merge_passages

    merged = merge_passages(lists, pipeline.merge) if isinstance(pipeline.merge, str) else pipeline.merge(lists)
    return list(merged)[:k]


def _first_hit(ids: Sequence[str], gold: Collection[str]) -> float:
    return next((place for place, name in enumerate(ids) if name in gold), float("inf"))


# ---- scores of answers in words


def normalized(text: str) -> list[str]:
    """Words of an answer as SQuAD compares them: lower case, no punctuation, no articles."""
    plain = text.casefold().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def exact_match(said: str, answers: Sequence[str]) -> float:
    """1 if the answer is one of the right ones word for word, else 0."""
    return float(any(normalized(said) == normalized(answer) for answer in answers))


def token_f1(said: str, answers: Sequence[str]) -> float:
    """The best F1 of words over the right answers; two empty answers agree."""
    return max((_f1(normalized(said), normalized(answer)) for answer in answers), default=0.0)


def _f1(said: list[str], right: list[str]) -> float:
    if not said or not right:
        return float(said == right)
    common = sum((Counter(said) & Counter(right)).values())
    return 2 * common / (len(said) + len(right))


def rouge_l(said: str, answers: Sequence[str]) -> float:
    """The best F-measure of the longest common subsequence of words (Lin 2004), without stemming."""
    return max((_lcs_f(said.casefold().split(), answer.casefold().split()) for answer in answers), default=0.0)


def _lcs_f(said: list[str], right: list[str]) -> float:
    if not said or not right:
        return float(said == right)
    row = [0] * (len(right) + 1)
    for word in said:
        diagonal = 0
        for place, other in enumerate(right, start=1):
            diagonal, row[place] = row[place], diagonal + 1 if word == other else max(row[place], row[place - 1])
    return 2 * row[-1] / (len(said) + len(right))
