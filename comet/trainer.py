"""DistillationTrainer: transformers' Trainer on the rows of a cache."""

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments
from transformers.utils import SAFE_WEIGHTS_NAME

from comet.data import CacheRows, Shard, collate
from comet.distiller import Distiller
from comet.evaluation import Collator, Validation, validate


class DistillationTrainer(Trainer):
    """A Trainer whose model is a Distiller, whose rows come shard by shard, and which validates without a teacher."""

    def __init__(
        self,
        distiller: Distiller,
        args: TrainingArguments,
        rows: CacheRows,
        validation: list[Shard],
        collator: Collator = collate,
        language_alpha: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self.rows = rows
        self.validation_shards = validation
        self.language_alpha = language_alpha
        self.collator = collator
        self.loss_parts: dict[str, list[Tensor]] = defaultdict(list)
        super().__init__(model=distiller, args=args, train_dataset=rows, data_collator=self.collator, **kwargs)  # type: ignore[arg-type]

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        rows: Any = train_dataset or self.train_dataset
        return rows.sampler(self.args.seed, self.language_alpha)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        losses = model(progress=self.state.global_step / self.state.max_steps, **inputs)
        for name, value in losses.items():
            if name != "loss":
                self.loss_parts[name].append(value)
        return (losses["loss"], losses) if return_outputs else losses["loss"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of each part of the loss since the last line."""
        if "loss" in logs:
            logs = logs | {name: torch.stack(values).mean().item() for name, values in self.loss_parts.items()}
            self.loss_parts.clear()
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = {f"eval_{name}": value for name, value in asdict(self.validate()).items()}
        self.log(metrics)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Of a checkpoint: the distiller, whose student has tied weights, as safetensors, and no pickled arguments."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self.accelerator.unwrap_model(self.model), str(folder / SAFE_WEIGHTS_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_model(self.accelerator.unwrap_model(self.model), Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME)

    def a_batch(self) -> dict[str, Tensor]:
        """The first rows of the cache, as many as a step has, on the device."""
        count = min(self.args.per_device_train_batch_size, len(self.rows))
        batch = self.collator(self.rows.__getitems__(range(count)))
        return {name: tensor.to(self.args.device) for name, tensor in batch.items()}

    def validate(self) -> Validation:
        """The student as it stands, on the validation rows."""
        distiller: Any = self.accelerator.unwrap_model(self.model)
        return validate(
            distiller, self.validation_shards, self.args.per_device_eval_batch_size, self.args.device, self.collator
        )
