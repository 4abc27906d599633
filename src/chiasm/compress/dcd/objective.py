"""DCD: a slow matcher teaches a fast one on the candidates that it finds hardest, each sample weighted by how sure it is.

Rao and others, "Dynamic Contrastive Distillation for Image-Text Retrieval", IEEE TMM 25, 2023, arXiv 2207.01426. With the
teacher's logits z and the student's y on the positive (c = 0) and H hard negatives of each of n queries:

    L = alpha T^2 sum_i a_i mean_c (z_ic / T - y_ic / T)^2  +  (1 - alpha) sum_i h_i mean_c BCE(y_ic, [c = 0])
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from chiasm.compress.dcd.mining import CHOICES, Choice, candidates, hardest
from chiasm.compress.dcd.scorers import PAIRS, DualEncoder, grid, listed, taken
from chiasm.compress.dcd.teacher import AnyTeacher, Inputs, ask, finite
from chiasm.compress.dcd.weights import entropy_weights, mastery_weights
from chiasm.errors import BadInput, unknown_name
from chiasm.learn.held_out import Direction, Encoded

Weighting = Literal["entropy", "wsl", "static"]
Logits = Literal["centered", "raw", "standardized"]
Directions = Literal["i2t", "t2i", "both"]
WEIGHTINGS = ("entropy", "wsl", "static")
LOGITS = ("centered", "raw", "standardized")
DIRECTIONS = ("i2t", "t2i", "both")


class DCD(nn.Module):
    """Dynamic contrastive distillation of a scorer of pairs into a student. Side ``a`` holds pictures, ``b`` captions.

    The candidates are the other items of the batch, or come with the pairs (`chiasm.compress.dcd.mined`), which is cheaper:
    then the teacher is not asked while training.

    Args:
        teacher: scores a batch: ``teacher(a_inputs, b_inputs) -> [m]`` over aligned pairs, a `Teacher`, or a matrix of logits
            ``[items of a, items of b]``. None where the logits come with the pairs. It is neither trained nor saved.
        student: scorer of the towers' outputs (`DualEncoder` by default, whose ranking is the cosine; `ProductFusion`,
            `CrossFusion`); its parameters are trained.
        hard_negatives: H; 7 in the paper. None for all candidates.
        alpha: weight of the teacher; 0.2 as in the paper.
        temperature: T; 1.
        weighting: ``"entropy"``, the paper's; ``"wsl"``, the released code's second rule, ``CE(y) + alpha T^2 mean_i w_i ...``;
            ``"static"``, equal weights.
        sharpness: of the entropy weights; None is the paper's form, see `entropy_weights`.
        logits: ``"centered"`` subtracts from z and y their mean over the list, since a softmax-trained teacher has no offset
            that a sigmoid-trained student could match (our default); ``"raw"`` is the paper's, right where the student has
            inherited the teacher's head; ``"standardized"`` also divides z by its deviation over the list.
        negatives: which H of the batch: the ``"teacher"``'s hardest, at ``"random"``, or ``"all"``.
        direction: ``"i2t"`` (each picture has captions for candidates) as in the paper, ``"t2i"``, or the mean of ``"both"``.
        warmup: share of the training in which candidates of a batch are chosen at random and alpha rises; 0 as in the paper.
        chunk: pairs that the teacher scores at a time.
        parity: as released: the weights of the distillation cancel, and the teacher's logits stand in the order of its
            ranking while the student's positive comes first.

    Raises:
        BadInput: numbers outside their range.
        UnknownName: an option that does not exist.
    """

    progress: Tensor
    # Candidates are those of the own process: the inputs that a teacher reads are not collected.
    local = (
        *("a", "b", "groups", "a_rows", "b_rows", "a_tokens", "a_mask", "b_tokens", "b_mask", "teacher_logits"),
        *(f"negative_{side}{what}" for side in "ab" for what in ("", "_tokens", "_mask", "_present")),
        *("logits_a", "logits_b"),
    )

    def __init__(
        self,
        teacher: AnyTeacher | Tensor | np.ndarray | None = None,
        student: nn.Module | None = None,
        *,
        hard_negatives: int | None = 7,
        alpha: float = 0.2,
        temperature: float = 1.0,
        weighting: Weighting = "entropy",
        sharpness: float | None = None,
        logits: Logits = "centered",
        negatives: Choice = "teacher",
        direction: Directions = "i2t",
        warmup: float = 0.0,
        chunk: int = PAIRS,
        parity: bool = False,
    ) -> None:
        super().__init__()
        for what, name, known in (
            ("weighting", weighting, WEIGHTINGS),
            ("form of the logits", logits, LOGITS),
            ("choice of candidates", negatives, CHOICES),
            ("direction", direction, DIRECTIONS),
        ):
            if name not in known:
                raise unknown_name(what, name, known)
        # alpha of wsl is no share: its two parts are not weighted against each other.
        most = 1.0 if weighting != "wsl" else float("inf")
        if not 0 <= alpha <= most or temperature <= 0 or not 0 <= warmup < 1 or chunk < 1:
            raise BadInput(f"alpha {alpha}, temperature {temperature}, warmup {warmup}, chunk {chunk}", where="DCD")
        if (hard_negatives is not None and hard_negatives < 1) or (sharpness is not None and sharpness < 0):
            raise BadInput(f"hard_negatives {hard_negatives}, sharpness {sharpness}", where="DCD")
        if teacher is not None and not callable(teacher):
            teacher = torch.as_tensor(teacher, dtype=torch.float32)
            if teacher.ndim != 2:
                raise BadInput(f"a teacher's matrix of shape {tuple(teacher.shape)}", where="DCD", fix="Give [a, b]")
        # A list hides the teacher from parameters() and state_dict().
        self._teacher: list[Any] = [teacher]
        self.student = DualEncoder() if student is None else student
        self.hard_negatives = None if negatives == "all" else hard_negatives
        self.alpha, self.temperature, self.sharpness, self.warmup = alpha, temperature, sharpness, warmup
        self.weighting: Weighting = weighting
        self.logits: Logits = logits
        self.negatives: Choice = negatives
        self.direction: Directions = direction
        self.chunk, self.parity = chunk, parity
        self.register_buffer("progress", torch.zeros(()))

    @property
    def teacher(self) -> Any:
        """The teacher, if there is one."""
        return self._teacher[0]

    @property
    def needs_teacher(self) -> bool:
        """False where nothing of the loss depends on the teacher: the baselines without distillation and mining."""
        return self.alpha > 0 or self.weighting == "entropy" or self.negatives == "teacher"

    def on_progress(self, step: int, steps: int) -> None:
        """Counts the warm-up."""
        self.progress.fill_(step / max(1, steps))

    def _strength(self) -> float:
        """0 .. 1, how far the warm-up has come."""
        return min(1.0, float(self.progress) / self.warmup) if self.warmup else 1.0

    def forward(
        self,
        a: Tensor,
        b: Tensor,
        *,
        groups: Tensor | None = None,
        a_rows: Tensor | None = None,
        b_rows: Tensor | None = None,
        a_inputs: Inputs | None = None,
        b_inputs: Inputs | None = None,
        a_tokens: Tensor | None = None,
        a_mask: Tensor | None = None,
        b_tokens: Tensor | None = None,
        b_mask: Tensor | None = None,
        teacher_logits: Tensor | None = None,
        negative_b: Tensor | None = None,
        negative_b_tokens: Tensor | None = None,
        negative_b_mask: Tensor | None = None,
        negative_b_present: Tensor | None = None,
        logits_b: Tensor | None = None,
        negative_a: Tensor | None = None,
        negative_a_tokens: Tensor | None = None,
        negative_a_mask: Tensor | None = None,
        negative_a_present: Tensor | None = None,
        logits_a: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss parts of n pairs: ``kd``, what the teacher says, and ``self``, what the labels say.

        Args:
            a, b: ``[n, D]``, pictures and captions.
            groups: int ``[n]``; pairs of one group are no false candidates of each other.
            a_rows, b_rows: int ``[n]``, which items they are.
            a_inputs, b_inputs: what a callable teacher reads.
            a_tokens, a_mask, b_tokens, b_mask: ``[n, L, D]`` and bool ``[n, L]``, for students that read tokens.
            teacher_logits: ``[n, n]``, the teacher's logits of the batch, instead of asking it.
            negative_b, negative_b_tokens, negative_b_mask, negative_b_present: ``[n, H, D]``, ``[n, H, L, D]``, bool
                ``[n, H, L]`` and bool ``[n, H]``: captions that are mined candidates of each picture.
            logits_b: ``[n, H + 1]``, the teacher's logits of the own caption and of these.
            negative_a, ..., logits_a: the same with pictures for each caption.

        Raises:
            BadInput: shapes that do not fit, or no word from a teacher where one is needed.
        """
        if len(a) != len(b) or not len(a):
            raise BadInput(f"{len(a)} and {len(b)} rows are not pairs", where="DCD")
        sides = {"b": Encoded(b, b_tokens, b_mask), "a": Encoded(a, a_tokens, a_mask)}
        pools = {
            "b": (negative_b, negative_b_tokens, negative_b_mask, negative_b_present, logits_b),
            "a": (negative_a, negative_a_tokens, negative_a_mask, negative_a_present, logits_a),
        }
        columns = {"i2t": ("b",), "t2i": ("a",), "both": ("b", "a")}[self.direction]
        z = None
        if any(pools[column][0] is None for column in columns) and self.needs_teacher:
            z = self._opinion(len(a), a_rows, b_rows, a_inputs, b_inputs, teacher_logits)
        rows = {"a": a_rows, "b": b_rows}
        losses: dict[str, Tensor] = {}
        for column in columns:
            if pools[column][0] is None:
                seen = None if z is None else (z if column == "b" else z.T)
                y, seen, valid = self._batch(sides, column, seen, groups, rows[column])
            else:
                y, seen, valid = self._pool(sides, column, *pools[column])
            for name, part in self.weighted(y, seen, valid).items():
                losses[name] = losses.get(name, part.new_zeros(())) + part / len(columns)
        return losses

    def _opinion(
        self,
        n: int,
        a_rows: Tensor | None,
        b_rows: Tensor | None,
        a_inputs: Inputs | None,
        b_inputs: Inputs | None,
        given: Tensor | None,
    ) -> Tensor:
        """The teacher's logits of a batch, ``[n, n]``."""
        if given is not None:
            if given.shape != (n, n):
                raise BadInput(f"teacher_logits {tuple(given.shape)} for {n} pairs", where="DCD")
            return finite(given.detach())
        if isinstance(self.teacher, Tensor):
            if a_rows is None or b_rows is None:
                raise BadInput("a matrix of logits needs the rows of the items", where="DCD", fix="Train with `Pairs`")
            # The matrix may be large: it stays where it is.
            return finite(self.teacher[a_rows.cpu()][:, b_rows.cpu()].to(a_rows.device))
        if self.teacher is None or a_inputs is None or b_inputs is None:
            raise BadInput(
                "nothing says what the teacher thinks",
                where="DCD",
                fix="Give a teacher, mine the pairs with `mined`, or take alpha=0, weighting='static', negatives='random'",
            )
        device = next(x.device for x in a_inputs.values() if isinstance(x, Tensor))
        every = torch.arange(n, device=device)
        pairs = every.repeat_interleave(n), every.repeat(n)
        return ask(self.teacher, a_inputs, b_inputs, *pairs, chunk=self.chunk).view(n, n)

    def _batch(
        self, sides: dict[str, Encoded], column: str, z: Tensor | None, groups: Tensor | None, own: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Student's and teacher's logits of the candidates of a batch, by one list for both."""
        items, queries = sides[column], sides["a" if column == "b" else "b"]
        n = len(items)
        allowed = candidates(groups, own, n, items.vectors.device)
        at_random = self.negatives == "random" or self._strength() < 1
        if at_random or z is None:
            # Outside of training the choice is the same every time, so that figures can be compared.
            generator = None if self.training else torch.Generator(allowed.device).manual_seed(0)
            key = torch.rand(n, n, generator=generator, device=allowed.device)
        else:
            key = z
        count = n if self.hard_negatives is None else self.hard_negatives
        index, valid = hardest(key, count, own=torch.arange(n, device=allowed.device), allowed=allowed)
        y = listed(self.student, queries, items, index, swap=column == "a")
        return y, None if z is None else z.gather(1, index), valid

    def _pool(
        self,
        sides: dict[str, Encoded],
        column: str,
        negative: Tensor | None,
        tokens: Tensor | None,
        mask: Tensor | None,
        present: Tensor | None,
        z: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The same of candidates that came with the pairs."""
        assert negative is not None
        n, h = negative.shape[:2]
        items, queries = sides[column], sides["a" if column == "b" else "b"]
        if z is not None and z.shape != (n, h + 1):
            raise BadInput(f"logits_{column} {tuple(z.shape)} for {h} candidates of {n} pairs", where="DCD")
        if z is None and self.needs_teacher:
            raise BadInput(f"negative_{column} came without logits_{column}", where="DCD", fix="Make them with `mined`")
        first = torch.ones(n, 1, dtype=torch.bool, device=negative.device)
        valid = torch.cat([first, torch.ones_like(first).expand(n, h) if present is None else present], dim=1)
        positive = listed(
            self.student, queries, items, torch.arange(n, device=first.device)[:, None], swap=column == "a"
        )
        false = Encoded(negative.flatten(0, 1), _flat(tokens), _flat(mask))
        places = torch.arange(n * h, device=first.device).view(n, h)
        y = torch.cat([positive, listed(self.student, queries, false, places, swap=column == "a")], dim=1)
        return y, None if z is None else finite(z.detach().to(y.dtype)), valid

    def weighted(self, y: Tensor, z: Tensor | None, valid: Tensor | None = None) -> dict[str, Tensor]:
        """The loss of lists of candidates: the method itself.

        Args:
            y: ``[n, C]``, the student's logits; the positive is column 0.
            z: ``[n, C]``, the teacher's, of the same candidates; None where it is not needed.
            valid: bool ``[n, C]``, True where there is a candidate.

        Returns:
            ``kd`` (only with a teacher's logits) and ``self``.
        """
        valid = torch.ones_like(y, dtype=torch.bool) if valid is None else valid
        equal = y.new_full((len(y),), 1.0 / len(y))
        imitate, trust = equal, equal
        if z is not None and self.weighting == "entropy":
            imitate, trust = entropy_weights(z, valid, sharpness=self.sharpness)
        alpha = self.alpha * self._strength()
        losses = {}
        if z is not None:
            if self.weighting == "wsl":
                imitate = mastery_weights(y, z, valid) / len(y)
            if self.parity:
                imitate, z = equal * imitate.sum(), _by_rank(z, valid)
            losses["kd"] = alpha * (imitate * self.distance(y, z, valid)).sum()
        if self.weighting == "wsl":
            first = torch.zeros(len(y), dtype=torch.long, device=y.device)
            return {**losses, "self": nn.functional.cross_entropy(y.masked_fill(~valid, -torch.inf), first)}
        label = torch.zeros_like(y)
        label[:, 0] = 1.0
        each = nn.functional.binary_cross_entropy_with_logits(y, label, reduction="none")
        return {**losses, "self": (1 - alpha) * (trust * _mean(each, valid)).sum()}

    def distance(self, y: Tensor, z: Tensor, valid: Tensor) -> Tensor:
        """``T^2 mean_c (z_ic / T - y_ic / T)^2`` for each list, ``[n]``, after centering."""
        if self.logits != "raw":
            y, z = (x - _mean(x, valid)[:, None] for x in (y, z))
        if self.logits == "standardized":
            z = z / _mean(z**2, valid).sqrt().clamp_min(1e-6)[:, None]
        t = self.temperature
        return t**2 * _mean((z / t - y / t) ** 2, valid)

    @torch.no_grad()
    def similarity(self, a: Encoded, b: Encoded, direction: Direction = "a") -> Tensor:
        """The student's logits of all pairs, ``[N, M]``, block by block; the same in both directions."""
        return grid(self.student, a, b)

    @torch.no_grad()
    def rerank(self, queries: Encoded, items: Encoded, shortlist: Tensor, direction: Direction = "a") -> Tensor:
        """The student's logits of a shortlist only: for fusion students behind a dual encoder.

        Args:
            queries: n pictures (direction ``"a"``) or n captions (``"b"``).
            items: the other side.
            shortlist: int ``[n, k]``, rows of ``items``.
            direction: which side the queries are of.

        Returns:
            ``[n, k]``.
        """
        every = torch.arange(len(queries), device=shortlist.device)
        parts = [
            listed(self.student, taken(queries, rows), items, shortlist[rows], swap=direction == "b")
            for rows in every.split(max(1, PAIRS // max(1, shortlist.shape[1])))
        ]
        return torch.cat(parts) if len(queries) else queries.vectors.new_zeros(shortlist.shape)


def _flat(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.flatten(0, 1)


def _mean(x: Tensor, valid: Tensor) -> Tensor:
    """Mean over the candidates that are there, ``[n]``."""
    return x.masked_fill(~valid, 0.0).sum(dim=1) / valid.sum(dim=1)


def _by_rank(z: Tensor, valid: Tensor) -> Tensor:
    """Logits in falling order, as the released code leaves them; missing ones stay where they are (the end)."""
    found = z.masked_fill(~valid, -torch.inf).sort(dim=1, descending=True).values
    return found.masked_fill(~valid, 0.0)
