"""Teachers and students of sentence-transformers: a `CrossEncoder` teaches a `SentenceTransformer`.

>>> pairs = Pairs({"a": Items(questions, student), "b": Items(passages, student)})
>>> pool = Pool.draw(pairs, 63).scored(Reranker(judge, pairs), pairs)
>>> train(student, mined(pairs, pool), DCD())
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from chiasm.compress.dcd.teacher import Inputs
from chiasm.errors import BadInput
from chiasm.learn.pairs import Pairs


class Items:
    """Texts, or whatever else the student reads, as a source of `Pairs`: preprocessed when they are needed.

    Args:
        items: N items; the teacher reads them too.
        model: the student (`SentenceTransformer`), whose own preprocessing makes its inputs.
        route: its route, if it has a router (``"query"``, ``"document"``); give the same to `train` as ``routes``.
        prompt: put before every text, as in `SentenceTransformer.encode`.

    Raises:
        BadInput: no items.
    """

    def __init__(
        self, items: Sequence[Any], model: Any, *, route: str | None = None, prompt: str | None = None
    ) -> None:
        if not len(items):
            raise BadInput("no items", where="Items")
        self.items, self.model, self.route, self.prompt = items, model, route, prompt

    def __len__(self) -> int:
        return len(self.items)

    def batch(self, rows: Sequence[int]) -> dict[str, Any]:
        """What the student reads of some rows, and ``rows`` int64 ``[n]``; row -1 (a missing candidate) reads row 0."""
        numbers = [int(row) for row in rows]
        more = {} if self.route is None else {"task": self.route}
        found = self.model.preprocess([self.items[max(row, 0)] for row in numbers], prompt=self.prompt, **more)
        return {**found, "rows": torch.tensor(numbers, dtype=torch.long)}


class Reranker:
    """A sentence-transformers `CrossEncoder` as the teacher of pairs of `Items`.

    Args:
        judge: the `CrossEncoder`, with one logit a pair, or two (no, yes), of which the difference is taken.
        pairs: whose items it reads.
        batch_size: pairs that it scores at a time.

    Raises:
        BadInput: a judge with more than two labels, or pairs that are not of `Items`.
    """

    def __init__(self, judge: Any, pairs: Pairs, *, batch_size: int = 32) -> None:
        sources = [pairs.source(side) for side in ("a", "b")]
        if not all(isinstance(source, Items) for source in sources):
            raise BadInput("the judge reads items, not features", where="Reranker", fix="Make the pairs of `Items`")
        if judge.num_labels > 2:
            raise BadInput(
                f"the judge has {judge.num_labels} labels",
                where="Reranker",
                fix="Take one with one logit, or (no, yes)",
            )
        self.judge, self.batch_size = judge, batch_size
        self.a, self.b = (source.items for source in sources if isinstance(source, Items))

    def __call__(self, a_inputs: Inputs, b_inputs: Inputs) -> Tensor:
        """``[m]`` logits of m aligned pairs, before any sigmoid, found by their ``rows``."""
        rows = zip(a_inputs["rows"].tolist(), b_inputs["rows"].tolist(), strict=True)
        logits = self.judge.predict(
            [(self.a[i], self.b[j]) for i, j in rows],
            batch_size=self.batch_size,
            activation_fn=nn.Identity(),
            convert_to_tensor=True,
            show_progress_bar=False,
        )
        logits = logits.float().to(a_inputs["rows"].device)
        return logits[:, 1] - logits[:, 0] if logits.ndim == 2 else logits
