"""InvGC: spread a crowded gallery once, offline."""

from chiasm.correct.invgc.graph import BankMoments, InverseGraphConvolution, grid

__all__ = ["BankMoments", "InverseGraphConvolution", "grid"]
