"""DistillationTrainer: transformers' Trainer on the rows of a cache."""

import math
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.utils import SAFE_WEIGHTS_NAME

from cache_tools.errors import CometError
from cache_tools.places.destinations import writing
from comet.train.dataset import CacheRows, Collator, collate
from comet.train.distiller import Distiller
from comet.train.distributed import Processes
from comet.train.sampler import SharedBatches
from comet.train.validation import Validation, validate

TRIES = 3
WORTH_IT = 0.9  # of the time of a float32 step


class DistillationTrainer(Trainer):
    """A Trainer of a Distiller: it reads a cache shard by shard, and validates without a teacher.

    Several processes together train on the batches of one alone, `per_device_train_batch_size` rows in each.
    """

    def __init__(
        self,
        distiller: Distiller,
        args: TrainingArguments,
        rows: CacheRows,
        validation: CacheRows,
        collator: Collator | None = None,
        language_alpha: float = 1.0,
        processes: Processes | None = None,
        **kwargs: Any,
    ) -> None:
        self.rows = rows
        self.validation_rows = validation
        self.language_alpha = language_alpha
        self.collator = collator or partial(collate, recipe=distiller.cache)
        self.processes = processes or Processes()
        self.loss_parts: dict[str, list[Tensor]] = defaultdict(list)
        self.tokens: list[Tensor] = []
        self.logged_at = math.nan  # until training begins
        super().__init__(
            model=distiller,
            args=args,
            train_dataset=rows,
            eval_dataset=validation,
            data_collator=self.collator,  # type: ignore[arg-type]
            **kwargs,
        )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as transformers' Trainer, and count the time of tokens per second from here on."""
        self.logged_at = time.monotonic()
        return super().train(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        pinned = self.args.dataloader_pin_memory
        loader: DataLoader = DataLoader(
            self.rows,
            batch_sampler=SharedBatches(
                self.rows.sampler(self.args.seed, self.language_alpha),
                self.args.per_device_train_batch_size * self.processes.count,
                self.processes.rank,
                self.processes.count,
            ),
            collate_fn=self.collator,  # type: ignore[arg-type]
            num_workers=self.args.dataloader_num_workers,
            pin_memory=pinned,
        )
        return prepare_data_loader(
            loader, self.args.device, num_processes=1, process_index=0, put_on_device=True, non_blocking=pinned
        )

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        # DDP averages gradients over processes, so each process divides by the mean number of targets and rows
        targets, rows = self.processes.total(len(inputs["target_id"]), len(inputs["length"]))
        losses = model(
            progress=self.state.global_step / self.state.max_steps,
            targets=max(targets, 1) / self.processes.count,
            rows=rows / self.processes.count,
            **inputs,
        )
        for name, value in losses.items():
            if name != "loss":
                self.loss_parts[name].append(value)
        self.tokens.append(inputs["length"].sum())
        return (losses["loss"], losses) if return_outputs else losses["loss"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the mean of each part of the loss since the last line, and tokens per second.

        Raises CometError if the loss is not finite: every later step would be wasted.
        """
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise self.diverged(f"the loss is {logs['loss']}")
            means = [torch.stack(values).mean().item() for values in self.loss_parts.values()]
            tokens = torch.stack(self.tokens).sum().item()
            *means, tokens = self.processes.total(*means, tokens)
            now = time.monotonic()
            logs |= {name: mean / self.processes.count for name, mean in zip(self.loss_parts, means, strict=True)}
            logs |= {"tokens_per_second": tokens / (now - self.logged_at)}
            self.logged_at = now
            self.loss_parts.clear()
            self.tokens.clear()
        super().log(logs, start_time)

    def diverged(self, found: str) -> CometError:
        """Return the error of a training that has diverged, with what helps and can be done."""
        distiller: Any = self.accelerator.unwrap_model(self.model)
        folder = Path(str(self.args.output_dir))
        begin_anew = f"remove {folder}, then run again" if any(folder.glob("checkpoint-*")) else "run again"
        return CometError(
            f"step {self.state.global_step}: {found}, so the training has diverged; {begin_anew} with a "
            f"--learning-rate below {self.args.learning_rate:g}{', or --dtype float32' if distiller.bf16 else ''}"
        )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validate and log the student. Returns the fields of a Validation, each with the prefix `eval_`."""
        began = time.monotonic()
        metrics = {f"eval_{name}": value for name, value in asdict(self.validate()).items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.logged_at += time.monotonic() - began
        return metrics

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with writing_checkpoint(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"):
            super()._save_checkpoint(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write the distiller, whose student has tied weights, as safetensors, without pickled arguments."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self.accelerator.unwrap_model(self.model), str(folder / SAFE_WEIGHTS_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_model(self.accelerator.unwrap_model(self.model), Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME)

    def a_batch(self) -> dict[str, Tensor]:
        """Return the first rows of the cache as a batch of one process, on the device."""
        count = min(self.args.per_device_train_batch_size, len(self.rows))
        batch = self.collator(self.rows.__getitems__(range(count)))
        return {name: tensor.to(self.args.device) for name, tensor in batch.items()}

    def validate(self, rows: CacheRows | None = None) -> Validation:
        """Measure the student on these rows, by default on all validation rows."""
        distiller: Any = self.accelerator.unwrap_model(self.model)
        size, device = self.args.per_device_eval_batch_size, self.args.device
        return validate(distiller, rows or self.validation_rows, size, device, self.collator, self.processes)


@contextmanager
def writing_checkpoint(folder: Path) -> Iterator[None]:
    """Remove the unfinished checkpoint, and raise CometError, if the disk refuses it."""
    try:
        with writing(folder, "make room, then run again, with --resume if there is a checkpoint before it"):
            yield
    except CometError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def choose_bf16(requested: str, distiller: Distiller, batch: dict[str, Tensor], device: torch.device) -> bool:
    """Choose bfloat16 if `requested` is bfloat16; if it is auto, on a GPU that has it, and on a CPU that is faster with
    it, measured in steps on `batch`.

    Leaves gradients, random state and mode as they were.
    """
    if requested != "auto":
        return requested == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    state, was_training, before = torch.get_rng_state(), distiller.training, distiller.bf16
    distiller.to(device).train()
    seconds: dict[bool, float] = {}
    for _ in range(TRIES):
        for bf16 in (False, True):
            distiller.bf16 = bf16
            started = time.perf_counter()
            distiller(**batch)["loss"].backward()
            seconds[bf16] = min(seconds.get(bf16, float("inf")), time.perf_counter() - started)
            distiller.zero_grad(set_to_none=True)
    distiller.bf16 = before
    distiller.train(was_training)
    torch.set_rng_state(state)
    return seconds[True] < WORTH_IT * seconds[False]
