"""The harness by which every method proves what it says: seeds, intervals, negative controls, provenance, the table."""

from chiasm.claims.claim import Claim, Gate, Row, Verdict
from chiasm.claims.data import Data
from chiasm.claims.run import load_claim, reproduce

__all__ = ["Claim", "Data", "Gate", "Row", "Verdict", "load_claim", "reproduce"]
