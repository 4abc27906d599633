"""Few labels in, decisions out: prompts and heads on frozen encoders, out-of-distribution scores, boosting over many tasks."""
