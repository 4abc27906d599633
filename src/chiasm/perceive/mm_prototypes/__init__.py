"""Multi-modal prototypes: segment classes given by words, by masked pictures, or by both."""

from chiasm.perceive.mm_prototypes.decoder import CHANNELS, ElasticDecoder, Reduced, reduce_similarities
from chiasm.perceive.mm_prototypes.dense import ClipEncoder, ConvEncoder, pretrain
from chiasm.perceive.mm_prototypes.episodes import Episodes, SupportBank, fit, relabelled
from chiasm.perceive.mm_prototypes.fusion import ComplementaryFusion
from chiasm.perceive.mm_prototypes.model import Clues, MultiModalPrototypes, dice_loss
from chiasm.perceive.mm_prototypes.protocol import FewShot, evaluate, evaluate_episodes, fold, misplaced
from chiasm.perceive.mm_prototypes.segmenter import PrototypeSegmenter
from chiasm.perceive.mm_prototypes.splitting import k_medoids, masked_average, split_mask, to_grid, visual_prototypes
from chiasm.perceive.mm_prototypes.textual import textual_prototypes

__all__ = [
    "CHANNELS",
    "ClipEncoder",
    "Clues",
    "ComplementaryFusion",
    "ConvEncoder",
    "ElasticDecoder",
    "Episodes",
    "FewShot",
    "MultiModalPrototypes",
    "PrototypeSegmenter",
    "Reduced",
    "SupportBank",
    "dice_loss",
    "evaluate",
    "evaluate_episodes",
    "fit",
    "fold",
    "k_medoids",
    "masked_average",
    "misplaced",
    "pretrain",
    "reduce_similarities",
    "relabelled",
    "split_mask",
    "textual_prototypes",
    "to_grid",
    "visual_prototypes",
]
