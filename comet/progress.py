"""What goes on beside the steps of a training: the live line, and the best student kept."""

import sys
from dataclasses import asdict
from typing import Any

from torch import Tensor
from tqdm import tqdm
from transformers import TrainerCallback

from comet.evaluation import Validation
from comet.trainer import DistillationTrainer


class LiveLine(TrainerCallback):
    """One bar with the parts of the loss, on a terminal only."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar = tqdm(total=state.max_steps, desc="train", unit="step", disable=None)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        shown = {name: f"{value:.4g}" for name, value in (logs or {}).items() if name in ("kd", "hard", "attention")}
        if shown:
            self.bar.set_postfix(shown)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


class KeepBest(TrainerCallback):
    """Validates after every epoch, remembers the weights nearest to the teacher, stops when nothing gets better."""

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

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.validations.append((state.global_step, self.trainer.validate()))
        tqdm.write(f"epoch {state.epoch:.3g}: {self.latest}", file=sys.stderr)
        if self.latest.distance < self.validation.distance:
            self.remember(self.latest, state.global_step)
            self.worse = 0
        else:
            self.worse += 1
            control.should_training_stop |= self.worse >= self.patience
