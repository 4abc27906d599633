"""`PairTrainer`: `SentenceTransformerTrainer` with a batch sampler of our own, and objectives in its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformerTrainer

_FILE = "objective.safetensors"


class PairTrainer(SentenceTransformerTrainer):
    """What the library's trainer does, and besides:

    - batches come from ``sampler``, if one is given;
    - a checkpoint also holds the objective's state (temperature, codebook, heads, queues), without which a resumed
      training would go on with another objective;
    - no model card is written, and no example is computed for it.
    """

    sampler: Any = None

    def get_batch_sampler(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return super().get_batch_sampler(dataset, *args, **kwargs) if self.sampler is None else self.sampler

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        pass

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _objective(self) -> Any:
        return getattr(self.loss, "objective", self.loss)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(str(folder), create_model_card=False)  # pyright: ignore[reportOptionalMemberAccess]
        state = {k: v.detach().cpu().contiguous().clone() for k, v in self._objective().state_dict().items()}
        if state:
            save_file(state, folder / _FILE)

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        super()._load_from_checkpoint(checkpoint_path)
        self._load_objective(checkpoint_path)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.state.best_model_checkpoint:
            self._load_objective(self.state.best_model_checkpoint)

    def _load_objective(self, folder: str) -> None:
        path = Path(folder) / _FILE
        if path.exists():
            self._objective().load_state_dict(load_file(path, device=str(self.args.device)))
