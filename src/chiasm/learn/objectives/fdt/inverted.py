"""The sparse weights in an inverted index: items that share strong codes with the query first, exact scores for these.

    score(i, j) = w_i C C^T w_j^T / (|w_i C| |w_j C|)

Codes are not orthogonal, so overlap of codes alone is no score: it picks candidates, and these are scored exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from chiasm.errors import BadInput

if TYPE_CHECKING:
    from chiasm.learn.objectives.fdt.codebook import FDT


# Queries whose overlaps with all items exist at once.
_QUERIES = 256


class InvertedIndex:
    """Items by their strongest codes.

    Args:
        weights: ``[M, K]``, of `FDT.weights`.
        codes: ``[K, dim]``, of `FDT.book`.
        strongest: codes an item (and a query) that the posting lists hold.

    Raises:
        BadInput: shapes that do not fit, no item, or ``strongest`` below 1.
    """

    def __init__(self, weights: Tensor, codes: Tensor, *, strongest: int = 16) -> None:
        if weights.ndim != 2 or weights.shape[1] != len(codes) or not len(weights) or strongest < 1:
            raise BadInput(
                f"weights {tuple(weights.shape)}, codes {tuple(codes.shape)}, strongest={strongest}",
                where="InvertedIndex",
            )
        self.codes, self.strongest = codes.detach(), strongest
        self.vectors = self._vectors(weights)
        # Code -> items, one row a code: the posting lists.
        self.postings = self._sparse(weights).T.tocsr()

    @classmethod
    def of(cls, objective: FDT, weights: Tensor, side: str, *, strongest: int = 16) -> InvertedIndex:
        """An index over the items of a side, with that side's codes."""
        return cls(weights, objective.book("a" if side == "a" else "b"), strongest=strongest)

    @property
    def entries(self) -> int:
        """Entries in all posting lists: what the index costs."""
        return int(self.postings.nnz)

    def _vectors(self, weights: Tensor) -> Tensor:
        return nn.functional.normalize(weights.detach() @ self.codes, dim=1, eps=1e-10)

    def _sparse(self, weights: Tensor) -> csr_matrix:
        kept = weights.detach().topk(min(self.strongest, weights.shape[1]), dim=1)
        rows = torch.arange(len(weights))[:, None].expand_as(kept.indices)
        on = kept.values > 0
        entries = (kept.values[on].numpy(), (rows[on].numpy(), kept.indices[on].numpy()))
        return csr_matrix(entries, shape=tuple(weights.shape))

    def search(
        self, weights: Tensor, k: int = 10, *, candidates: int = 100, codes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The best items for queries.

        Args:
            weights: ``[N, K]``, of the queries.
            k: hits a query.
            candidates: items a query that are scored exactly: those with the largest overlap of strong codes.
            codes: the queries' own codes, if the codebooks are not shared.

        Returns:
            Scores (cosine of the representations) and item numbers, ``[N, k]`` each, the best first; -inf and -1 where fewer
            items share a strong code with the query.
        """
        books = self.codes if codes is None else codes.detach()
        parts = [
            self._search(weights[at : at + _QUERIES], books, k, candidates) for at in range(0, len(weights), _QUERIES)
        ]
        scores, items = zip(*parts) if parts else ([weights.new_zeros((0, k))], [weights.new_zeros((0, k)).long()])
        return torch.cat(list(scores)), torch.cat(list(items))

    def _search(self, weights: Tensor, books: Tensor, k: int, candidates: int) -> tuple[Tensor, Tensor]:
        overlap = torch.from_numpy((self._sparse(weights) @ self.postings).toarray())
        best = overlap.topk(min(max(candidates, k), overlap.shape[1]), dim=1)
        queries = nn.functional.normalize(weights.detach() @ books, dim=1, eps=1e-10)
        exact = (self.vectors[best.indices] @ queries[:, :, None])[..., 0].masked_fill(best.values <= 0, -torch.inf)
        top = exact.topk(min(k, exact.shape[1]), dim=1)
        items = best.indices.gather(1, top.indices)
        return top.values, items.masked_fill(top.values.isneginf(), -1)
