"""TCL: cross-modal, intra-modal and local contrast against a momentum encoder; image-text matching and masked words."""

from chiasm.learn.objectives.tcl.fusion import FusedTripleContrast, masked_words
from chiasm.learn.objectives.tcl.locals import cells, local_contrast
from chiasm.learn.objectives.tcl.objective import TripleContrast
from chiasm.learn.objectives.tcl.views import VIEW_ROUTES, Augmented, two_views

__all__ = [
    "VIEW_ROUTES",
    "Augmented",
    "FusedTripleContrast",
    "TripleContrast",
    "cells",
    "local_contrast",
    "masked_words",
    "two_views",
]
