"""Routers of the paper's size: a sequence classifier (DistilBERT) and a model that generates the label (Flan-T5).

Any Hugging Face model of either kind serves; the paper's are `distilbert-base-uncased` and `google/flan-t5-large`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chiasm.errors import BadInput
from chiasm.reason.rag.universal_rag.routers import QuestionRouter, first_line

# Longest question in tokens (the paper's).
MAX_TOKENS = 512


class ClassifierRouter(QuestionRouter):
    """A sequence classifier with one label per corpus.

    Args:
        model: of the kind `AutoModelForSequenceClassification` loads.
        tokenizer: of the model.
        names: corpora in the order of the model's labels; by default ``config.id2label``.
    """

    def __init__(self, model: Any, tokenizer: Any, names: Sequence[str] | None = None) -> None:
        labels = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
        super().__init__(names or labels)
        if len(self.names) != len(labels):
            raise BadInput(f"{len(self.names)} corpora for {len(labels)} labels", where="ClassifierRouter")
        self.model, self.tokenizer = model, tokenizer

    def shares(self, text: str) -> np.ndarray:
        import torch

        self.model.eval()
        with torch.no_grad():
            logits = self.model(**self._tokens([text]).to(self.model.device)).logits[0].double()
        return torch.softmax(logits, -1).cpu().numpy()

    def fit(
        self,
        questions: Sequence[str],
        targets: Sequence[str],
        *,
        epochs: float = 5,
        rate: float = 2e-5,
        batch_size: int = 64,
        weight_decay: float = 0.01,
        seed: int = 0,
    ) -> ClassifierRouter:
        """Fine-tunes the model with the Hugging Face trainer; defaults are the paper's (AdamW, cross-entropy).

        Args:
            questions, targets: what to learn from.
            epochs, rate, batch_size, weight_decay: of the trainer.
            seed: of the order of questions.

        Raises:
            BadInput: a target that is no label.
            MissingExtra: ``chiasm[train]`` is not installed.
        """
        from chiasm.learn.fitting import fit_module  # brings torch along

        unknown = sorted(set(targets) - set(self.names))
        if unknown or len(questions) != len(targets) or not len(questions):
            raise BadInput(
                f"{len(questions)} questions, {len(targets)} targets, unknown: {unknown}", where="ClassifierRouter.fit"
            )
        rows = [
            {**self._one(question), "labels": self.names.index(name)}
            for question, name in zip(questions, targets, strict=True)
        ]
        fit_module(
            self.model,
            rows,
            batch_size=batch_size,
            epochs=epochs,
            seed=seed,
            collate=self._collate,
            learning_rate=rate,
            weight_decay=weight_decay,
            logging_strategy="no",
        )
        self.model.eval()
        return self

    def _one(self, question: str) -> dict[str, Any]:
        return dict(self.tokenizer(first_line(question), truncation=True, max_length=MAX_TOKENS))

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        labels = torch.tensor([row["labels"] for row in rows])
        inputs = [{name: value for name, value in row.items() if name != "labels"} for row in rows]
        return {**self.tokenizer.pad(inputs, return_tensors="pt"), "labels": labels}

    def _tokens(self, texts: Sequence[str]) -> Any:
        return self.tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS, padding=True, return_tensors="pt")


class LabelWordRouter(QuestionRouter):
    """A sequence-to-sequence model that writes the label; the share is the probability of the label's first token.

    Args:
        model: of the kind `AutoModelForSeq2SeqLM` loads.
        tokenizer: of the model.
        names: corpora; their first tokens must differ.
        prompt: text before the question, as the model was trained.

    Raises:
        BadInput: two names begin with the same token.
    """

    def __init__(self, model: Any, tokenizer: Any, names: Sequence[str], *, prompt: str = "") -> None:
        super().__init__(names)
        self.model, self.tokenizer, self.prompt = model, tokenizer, prompt
        self._firsts = [tokenizer(name, add_special_tokens=False)["input_ids"][0] for name in self.names]
        if len(set(self._firsts)) < len(self._firsts):
            raise BadInput("two names begin with the same token", where="LabelWordRouter", fix="Rename one of them")

    def shares(self, text: str) -> np.ndarray:
        import torch

        self.model.eval()
        inputs = self.tokenizer(self.prompt + text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        start = torch.tensor([[self.model.config.decoder_start_token_id]], device=self.model.device)
        with torch.no_grad():
            logits = self.model(**inputs.to(self.model.device), decoder_input_ids=start).logits[0, -1].double()
        return torch.softmax(logits[self._firsts], -1).cpu().numpy()
