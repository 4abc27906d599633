"""Words as numbers, for text towers that train from scratch: a word-level tokenizer over the training texts.

>>> words = Words.of(captions)
>>> source = Features.ragged("input_ids", words.ids(captions))
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from chiasm.errors import BadInput

PAD, UNKNOWN, MASK = 0, 1, 2


class Words:
    """A vocabulary. Ids 0, 1 and 2 are padding, unknown words and the mask of masked language modelling.

    Args:
        tokenizer: of the package ``tokenizers``; `of` makes one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        # A text in which somebody writes "[PAD]" or "[MASK]" has a word there, and no padding.
        self.tokenizer.encode_special_tokens = True

    @classmethod
    def of(cls, texts: Sequence[str], *, least: int = 1, most: int = 20_000) -> Words:
        """The words of some texts: lower case, accents kept, punctuation dropped.

        Args:
            texts: the training texts.
            least: words that occur less often are unknown.
            most: size of the vocabulary.
        """
        if not len(texts):
            raise BadInput("no texts", where="Words.of")
        tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])  # pyright: ignore
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("removed")]
        )
        special = ["[PAD]", "[UNK]", "[MASK]"]
        trainer = trainers.WordLevelTrainer(
            vocab_size=most, min_frequency=least, special_tokens=special, show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    def ids(self, texts: Sequence[str], *, longest: int = 64) -> list[np.ndarray]:
        """Word ids of each text, int64 ``[L_i]``, at most ``longest``; a text without words is one unknown word."""
        return [
            np.array(found.ids[:longest] or [UNKNOWN], dtype=np.int64)
            for found in self.tokenizer.encode_batch(list(texts))
        ]

    def words(self, ids: Sequence[int]) -> list[str]:
        """The words of some ids."""
        return [self.tokenizer.id_to_token(int(i)) or "[UNK]" for i in ids]
