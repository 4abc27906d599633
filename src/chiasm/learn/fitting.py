"""`fit_module`: `transformers.Trainer` for any module that returns ``{"loss": ...}``: heads, prompts, decoders.

Models of sentence-transformers that learn from pairs are trained by `chiasm.learn.train`; nothing here is saved, logged to a
service or printed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from chiasm.errors import missing_extra


def fit_module(
    module: nn.Module,
    rows: Any,
    *,
    batch_size: int,
    epochs: float,
    seed: int,
    collate: Callable[[list[Any]], dict[str, Any]] | None = None,
    validation: Any = None,
    optimizers: tuple[Any, Any] = (None, None),
    callbacks: Sequence[Any] = (),
    progress: bool = False,
    **arguments: Any,
) -> Any:
    """Trains a module in place, on the device where its parameters are.

    Args:
        module: ``module(**batch)`` gives ``{"loss": scalar}``.
        rows: a data set with ``len`` and ``[i]``.
        batch_size, epochs: rows a step, passes over the rows.
        seed: of the order; the global random state is set to it.
        collate: makes a batch of drawn rows; default stacks tensors by name.
        validation: rows of which the loss is taken as ``arguments`` say.
        optimizers: optimizer and schedule; default AdamW by ``arguments``.
        callbacks: of transformers.
        progress: show a bar.
        arguments: further `transformers.TrainingArguments`.

    Returns:
        transformers' ``TrainerState``: ``global_step``, ``log_history``, ...

    Raises:
        MissingExtra: ``chiasm[train]`` is not installed.
    """
    try:
        from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed
    except ImportError as error:
        raise missing_extra("training", "train", "accelerate") from error
    set_seed(seed)
    was_training = module.training
    with tempfile.TemporaryDirectory(prefix="chiasm-fit-") as folder:
        args = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=batch_size,
            num_train_epochs=epochs,
            seed=seed,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            disable_tqdm=not progress,
            use_cpu=next(module.parameters()).device.type == "cpu",
            dataloader_pin_memory=False,
            **arguments,
        )
        trainer = Trainer(
            model=module,
            args=args,
            train_dataset=rows,
            eval_dataset=validation,
            data_collator=collate,  # pyright: ignore[reportArgumentType]
            callbacks=list(callbacks),
            optimizers=optimizers,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    module.train(was_training)
    return trainer.state


def finite(parameters: Sequence[torch.Tensor]) -> bool:
    """Whether all values of all parameters are numbers."""
    return all(bool(torch.isfinite(parameter).all()) for parameter in parameters)
