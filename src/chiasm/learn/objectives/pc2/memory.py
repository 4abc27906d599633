"""What is remembered of each pair, keyed by its number in the whole data set: pseudo-predictions, losses, beliefs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from chiasm.errors import BadInput
from chiasm.learn.objectives.pc2.split import clean_pairs, corrected, low_posterior, oscillation

_ROWS = ("losses", "drift", "clean", "stable", "noisy")


class PairMemory(nn.Module):
    """State of N pairs for each network. All of it is saved with the objective, whatever N.

    Buffers: ``bank`` float16 ``[networks, N, K]``, the pseudo-prediction of the image when the pair was last trained on;
    ``losses`` and ``drift`` ``[networks, N]``, loss and oscillation as last measured (NaN: never); ``clean`` and
    ``stable``, the posteriors w and u of the last split; ``noisy``, the hard split; ``splits``, how many there were.

    Args:
        pairs: N; 0 grows with the numbers that come.
        classes: K.
        networks: how many networks.
    """

    bank: Tensor
    losses: Tensor
    drift: Tensor
    clean: Tensor
    stable: Tensor
    noisy: Tensor
    splits: Tensor

    def __init__(self, pairs: int, classes: int, networks: int) -> None:
        super().__init__()
        if pairs < 0:
            raise BadInput(f"{pairs} pairs", where="PairMemory")
        self.classes, self.networks = classes, networks
        self.register_buffer("bank", torch.zeros(networks, 0, classes, dtype=torch.float16))
        for name in _ROWS:
            self.register_buffer(name, torch.zeros(networks, 0, dtype=torch.bool if name == "noisy" else torch.float32))
        self.register_buffer("splits", torch.zeros((), dtype=torch.long))
        self.grow(pairs)

    def __len__(self) -> int:
        return self.bank.shape[1]

    @torch.no_grad()
    def grow(self, pairs: int) -> None:
        """Makes room for pairs 0 .. pairs - 1; new ones have no loss, no prediction, and are believed."""
        more = pairs - len(self)
        if more <= 0:
            return
        self.bank = torch.cat([self.bank, self.bank.new_zeros(self.networks, more, self.classes)], dim=1)
        for name in _ROWS:
            old = getattr(self, name)
            value = {"losses": torch.nan, "drift": torch.nan, "noisy": False}.get(name, 1.0)
            setattr(self, name, torch.cat([old, old.new_full((self.networks, more), value)], dim=1))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        """Takes the size of what is loaded."""
        for name in ("bank", *_ROWS):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=self.splits.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @torch.no_grad()
    def measured(self, network: int, ids: Tensor, losses: Tensor, predictions: Tensor) -> None:
        """Notes losses ``[n]`` and how far the predictions ``[n, K]`` are from those in the bank."""
        self.grow(int(ids.max()) + 1)
        self.losses[network, ids] = losses.detach().to(self.losses)
        self.drift[network, ids] = oscillation(predictions.detach(), self.bank[network, ids]).to(self.drift)

    @torch.no_grad()
    def trained(self, network: int, ids: Tensor, predictions: Tensor) -> None:
        """Puts the predictions ``[n, K]`` of pairs that are trained on into the bank."""
        if len(ids):
            self.grow(int(ids.max()) + 1)
            self.bank[network, ids] = predictions.detach().to(self.bank)

    @torch.no_grad()
    def split(self, *, threshold: float = 0.5, least: float = 0.01, seed: int = 0) -> None:
        """Fits both mixtures for every network over all pairs with a loss; pairs without one stay believed."""
        for network in range(self.networks):
            known = self.losses[network].isfinite().nonzero().squeeze(1)
            if not len(known):
                continue
            w = low_posterior(self.losses[network, known].cpu().numpy(), seed=seed)
            u = low_posterior(self.drift[network, known].cpu().numpy(), seed=seed)
            for name, values in (
                ("clean", w),
                ("stable", u),
                ("noisy", ~clean_pairs(w, threshold=threshold, least=least)),
            ):
                rows = getattr(self, name)
                rows[network, known] = torch.from_numpy(values).to(rows)
        self.splits += 1

    def belief(self, network: int, ids: Tensor, *, correct: bool = True) -> tuple[Tensor, Tensor]:
        """The hard split (True: clean) and the corrected correspondence y of some pairs, ``[n]`` each.

        Args:
            network: whose opinion.
            ids: numbers of the pairs.
            correct: False leaves the oscillation out: y = w.
        """
        self.grow(int(ids.max()) + 1)
        w, u = self.clean[network, ids], self.stable[network, ids]
        return ~self.noisy[network, ids], corrected(w, u) if correct else w
