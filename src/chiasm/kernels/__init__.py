"""Pure functions on arrays: top-k, MaxSim, streamed log-sum-exp, segment operations. No models, no state."""
