"""Pure functions on arrays: top-k, MaxSim, streamed log-sum-exp, segment operations. No models, no state."""

from chiasm.kernels.topk import topk_inner

__all__ = ["topk_inner"]
