"""`PairTrainer`: `SentenceTransformerTrainer` with a batch sampler of our own, and objectives in its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformerTrainer


class PairTrainer(SentenceTransformerTrainer):
    """What the library's trainer does, and besides:

    - batches come from ``sampler``, if one is given;
    - a checkpoint also holds the objective's state (temperature, codebook, heads, queues), the momentum encoder and the
      average of the weights, without which a resumed training would go on as another one;
    - no model card is written, and no example is computed for it.
    """

    sampler: Any = None
    average: Any = None  # the `Momentum` that follows the weights, if there is one

    def get_batch_sampler(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return super().get_batch_sampler(dataset, *args, **kwargs) if self.sampler is None else self.sampler

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        pass

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _besides(self, folder: Path) -> dict[str, Any]:
        """What a checkpoint holds besides the model; the momentum encoder only if it has been used."""
        found = {"objective": getattr(self.loss, "objective", self.loss)}
        if getattr(self.loss, "_teacher", None) or (folder / "teacher.safetensors").exists():
            found["teacher"] = self.loss.teacher  # pyright: ignore[reportAttributeAccessIssue]
        if self.average is not None:
            found["average"] = self.average
        return found

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(str(folder), create_model_card=False)  # pyright: ignore[reportOptionalMemberAccess]
        for name, module in self._besides(folder).items():
            state = {k: v.detach().cpu().contiguous().clone() for k, v in module.state_dict().items()}
            if state:
                save_file(state, folder / f"{name}.safetensors")

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        super()._load_from_checkpoint(checkpoint_path)
        self._load_besides(checkpoint_path)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.state.best_model_checkpoint:
            self._load_besides(self.state.best_model_checkpoint)

    def _load_besides(self, folder: str) -> None:
        for name, module in self._besides(Path(folder)).items():
            path = Path(folder) / f"{name}.safetensors"
            if path.exists():
                module.load_state_dict(load_file(path, device=str(self.args.device)))
