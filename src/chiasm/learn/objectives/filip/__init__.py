"""FILIP: fine-grained late interaction between patches and words."""

from chiasm.learn.objectives.filip.interaction import late_interaction, token_strength, unit_tokens
from chiasm.learn.objectives.filip.objective import Filip
from chiasm.learn.objectives.filip.recipe import Recipe, Versions
from chiasm.learn.objectives.filip.search import TwoStage, pooled
from chiasm.learn.objectives.filip.selection import keep_tokens, merge_tokens, select_locally, strongest
from chiasm.learn.objectives.filip.word_patch import WordPatchMap, patch_of_word, word_patch_map
from chiasm.learn.objectives.filip.zero_shot import PROMPTS, Prompt, zero_shot

__all__ = [
    "PROMPTS",
    "Filip",
    "Prompt",
    "Recipe",
    "TwoStage",
    "Versions",
    "WordPatchMap",
    "keep_tokens",
    "late_interaction",
    "merge_tokens",
    "patch_of_word",
    "pooled",
    "select_locally",
    "strongest",
    "token_strength",
    "unit_tokens",
    "word_patch_map",
    "zero_shot",
]
