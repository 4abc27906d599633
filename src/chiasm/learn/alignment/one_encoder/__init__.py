"""OneEncoder: one space for many modalities, extended by training only what belongs to the new one (arXiv 2409.11059)."""

from chiasm.blocks.alignment import AlignmentLayer
from chiasm.learn.alignment.one_encoder.encoder import OneEncoder, as_model
from chiasm.learn.alignment.one_encoder.fusion import FUSIONS, Fusion
from chiasm.learn.alignment.one_encoder.objective import OneEncoderLoss
from chiasm.learn.alignment.one_encoder.projection import ModalityToken, TokenPerceptron, UniversalProjection
from chiasm.learn.alignment.one_encoder.protocol import (
    class_prompts,
    embedded,
    encoder_of,
    first_step,
    next_step,
    token_means,
)
from chiasm.learn.alignment.one_encoder.questions import AnswerHead, question_encoder, wups

__all__ = [
    "FUSIONS",
    "AlignmentLayer",
    "AnswerHead",
    "Fusion",
    "ModalityToken",
    "OneEncoder",
    "OneEncoderLoss",
    "TokenPerceptron",
    "UniversalProjection",
    "as_model",
    "class_prompts",
    "embedded",
    "encoder_of",
    "first_step",
    "next_step",
    "question_encoder",
    "token_means",
    "wups",
]
