"""What goes on beside the steps of a training: the live line, and the best student kept."""

import sys
from dataclasses import asdict
from typing import Any

from torch import Tensor
from tqdm import tqdm
from transformers import TrainerCallback

from comet.train.trainer import DistillationTrainer
from comet.train.validation import Validation

SHOWN = {"kd": "kd", "hard": "hard", "attention": "attention", "eval_kl": "validation", "tokens_per_second": "tokens/s"}


class LiveLine(TrainerCallback):
    """One bar with the parts of the loss, the last validation and tokens per second; on a terminal only, and of
    several processes of the first one."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        silent = None if state.is_world_process_zero else True
        self.shown: dict[str, str] = {}
        self.bar = tqdm(total=state.max_steps, desc="train", unit="step", disable=silent)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        self.shown |= {
            SHOWN[name]: f"{value:,.0f}" if name == "tokens_per_second" else f"{value:.3f}"
            for name, value in (logs or {}).items()
            if name in SHOWN
        }
        self.bar.set_postfix(self.shown)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


class KeepBest(TrainerCallback):
    """Remembers the weights nearest to the teacher of all validations, stops when nothing gets better."""

    def __init__(self, trainer: DistillationTrainer, patience: int) -> None:
        self.trainer = trainer
        self.patience = patience
        self.worse = 0

    def begin(self) -> None:
        """With the student as it stands before the first step."""
        self.validations = [(0, self.trainer.validate())]
        self.remember(self.start, 0)

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

    def to_json(self) -> dict[str, Any]:
        """All but the weights."""
        validations = [(step, asdict(validation)) for step, validation in self.validations]
        return {"step": self.step, "worse": self.worse, "validations": validations}

    def restore(self, state: dict[str, Any], weights: dict[str, Tensor]) -> None:
        """Goes on from what `to_json` gave, and the weights of that moment."""
        self.validations = [(step, Validation(**validation)) for step, validation in state["validations"]]
        self.step, self.worse, self.weights = state["step"], state["worse"], weights
        self.validation = dict(self.validations)[self.step]

    def remember(self, validation: Validation, step: int) -> None:
        student: Any = self.trainer.accelerator.unwrap_model(self.trainer.model).student
        self.weights = {name: tensor.detach().cpu().clone() for name, tensor in student.state_dict().items()}
        self.validation = validation
        self.step = step

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        found = Validation(**{name.removeprefix("eval_"): value for name, value in metrics.items()})
        self.validations.append((state.global_step, found))
        if state.is_world_process_zero:
            tqdm.write(f"epoch {state.epoch:.3g}: {self.latest}", file=sys.stderr)
        if self.latest.distance < self.validation.distance:
            self.remember(self.latest, state.global_step)
            self.worse = 0
        else:
            self.worse += 1
        if self.gives_up:
            control.should_training_stop = True
            control.should_save = False  # a training that is over is not gone on with

    @property
    def gives_up(self) -> bool:
        return self.worse >= self.patience
