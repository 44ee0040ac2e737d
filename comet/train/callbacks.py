"""Callbacks of the trainer: the progress bar, and the best checkpoint."""

import json
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import TrainerCallback

from cache_tools.progress import duration, show_progress
from comet.train.objective import Objective, is_used
from comet.train.trainer import DistillationTrainer
from comet.train.validation import Validation

WARM_UP, TIMED = 2, 8  # steps: the first ones are slower
WORTH_SAYING = 60.0  # seconds
WIDE = 120  # columns of a terminal with room for all that follows
MOST_IMPORTANT = ("kd", "eval_kl")
SHOWN = {"kd": "kd", "hard": "hard", "attention": "attention", "eval_kl": "validation", "tokens_per_second": "tokens/s"}


class LiveLine(TrainerCallback):
    """Show the parts of the loss, the last validation and tokens per second beside the progress, and say after the
    first steps how long the rest will take.

    Of several processes in the first only.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.shown: dict[str, str] = {}
        self.steps = 0
        self.bar = show_progress(
            what="train", unit="step", total=state.max_steps, initial=state.global_step,
            disable=not state.is_world_process_zero,
        )  # fmt: skip

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)
        self.steps += 1
        if self.steps == WARM_UP:
            self.began = time.monotonic()
        if self.steps == WARM_UP + TIMED and state.is_world_process_zero:
            left = (time.monotonic() - self.began) / TIMED * (state.max_steps - state.global_step)
            if left > WORTH_SAYING:
                tqdm.write(f"about {duration(left)} more for the {state.max_steps:,} steps, on this machine")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        self.shown |= {
            SHOWN[name]: f"{value:,.0f}" if name == "tokens_per_second" else f"{value:.3f}"
            for name, value in (logs or {}).items()
            if name in (SHOWN if shutil.get_terminal_size().columns >= WIDE else MOST_IMPORTANT)
        }
        self.bar.set_postfix(self.shown, refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


class KeepBest(TrainerCallback):
    """Keep the weights of the best validation; stop after `patience` validations without a better one.

    The best has the lowest KL. An objective of labels alone does not lead towards the teacher: of its validations the
    best has the lowest masked-token loss. `seconds` are those of the training so far, without pauses before a resume.
    """

    def __init__(self, trainer: DistillationTrainer, objective: Objective) -> None:
        self.trainer = trainer
        self.patience = objective.patience
        self.learns_labels = is_used(objective.hard_weight) and not is_used(objective.kd_weight)
        self.worse = 0

    def begin(self) -> None:
        """Validate the student as it is before the first step."""
        self.validations = [(0, self.trainer.validate())]
        self.remember(self.start, 0)
        self._began = time.monotonic()

    @property
    def start(self) -> Validation:
        return self.validations[0][1]

    @property
    def latest(self) -> Validation:
        return self.validations[-1][1]

    @property
    def measured_at(self) -> int:
        """The step of the latest validation."""
        return self.validations[-1][0]

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def gives_up(self) -> bool:
        return self.worse >= self.patience

    def save(self, checkpoint: Path) -> None:
        """Write the best weights and all validations into the folder of a checkpoint."""
        validations = [(step, asdict(validation)) for step, validation in self.validations]
        state = {"step": self.step, "worse": self.worse, "seconds": self.seconds, "validations": validations}
        save_file(self.weights, checkpoint / "best.safetensors")
        (checkpoint / "best.json").write_text(json.dumps(state), encoding="utf-8")

    def restore(self, checkpoint: Path) -> None:
        """Continue from the files of `save`."""
        state = json.loads((checkpoint / "best.json").read_text(encoding="utf-8"))
        weights = load_file(checkpoint / "best.safetensors")
        self.weights = {name: tensor.clone() for name, tensor in weights.items()}  # NFS and Windows keep a mapped file
        self.validations = [(step, Validation(**validation)) for step, validation in state["validations"]]
        self.step, self.worse = state["step"], state["worse"]
        self._began = time.monotonic() - state["seconds"]
        self.validation = dict(self.validations)[self.step]

    def measure(self, found: Validation) -> float:
        """Return the measure that the best validation has lowest."""
        return found.cross_entropy if self.learns_labels else found.distance

    def remember(self, validation: Validation, step: int) -> None:
        student: Any = self.trainer.accelerator.unwrap_model(self.trainer.model).student
        self.weights = {name: tensor.detach().cpu().clone() for name, tensor in student.state_dict().items()}
        self.validation = validation
        self.step = step

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        found = Validation(**{name.removeprefix("eval_"): value for name, value in metrics.items()})
        self.validations.append((state.global_step, found))
        if state.is_world_process_zero:
            tqdm.write(f"step {state.global_step:,} (epoch {state.epoch:.2g}): {found}", file=sys.stderr)
        if self.measure(found) < self.measure(self.validation):
            self.remember(found, state.global_step)
            self.worse = 0
        else:
            self.worse += 1
        if self.gives_up:
            control.should_training_stop = True
            control.should_save = False  # a finished training is not resumed
