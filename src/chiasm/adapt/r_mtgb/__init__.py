"""R-MTGB: gradient boosting over many tasks that finds the odd ones."""

from chiasm.adapt.r_mtgb.classifier import RMTGBClassifier
from chiasm.adapt.r_mtgb.regressor import RMTGBRegressor

__all__ = ["RMTGBClassifier", "RMTGBRegressor"]
