"""The teacher's side of every signal: one class each that computes its arrays and compares those of two runs."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from torch import Tensor

from cache_tools.signals import ARRAYS, UNUSED_POSITION, kept_signals
from cache_tools.store.recipe import Recipe
from cache_tools.teacher.attention import SampledAttention
from cache_tools.teacher.comparison import Arrays, Errors
from cache_tools.teacher.head import BlockedHead
from cache_tools.teacher.model import Observation
from cache_tools.teacher.threshold import ThresholdLogits
from cache_tools.teacher.topk import TopkLogits


class TeacherSignal(Protocol):
    """The teacher's side of a signal of `cache_tools.signals`. Arrays of logits are [T, …], at targets."""

    def compute(self, observed: Observation, head: BlockedHead) -> dict[str, Tensor]:
        """Return the signal's arrays of a batch, on the device and in their stored dtypes."""

    def recompute(self, stored: Arrays, features: Tensor, head: BlockedHead) -> dict[str, Tensor]:
        """Return arrays that are not stored, but needed for a comparison with the `stored` ones."""

    def compare(self, stored: Arrays, found: Arrays) -> Errors:
        """Return the errors of this signal's measures."""


_CLASSES: dict[str, Callable[[Recipe], TeacherSignal]] = {
    "threshold": ThresholdLogits,
    "topk": TopkLogits,
    "attention": SampledAttention,
}


def teacher_signals(recipe: Recipe) -> dict[str, TeacherSignal]:
    """Return the signals of a cache by name."""
    return {signal.name: _CLASSES[signal.name](recipe) for signal in kept_signals(recipe)}


def errors_of(stored: Arrays, found: Arrays, recipe: Recipe) -> Errors:
    """Return, by measure of the table, the error of each value, flat; infinite if a run has no finite number.

    `stored` are rows of a cache with `target_position` and `length`, `found` the teacher's arrays of the same rows. A
    signal is compared if both hold all of its arrays.
    """
    used = stored["target_position"] != UNUSED_POSITION  # [R, M]
    errors: Errors = {}
    signals = teacher_signals(recipe)
    for signal in kept_signals(recipe):
        if not stored.keys() & found.keys() >= signal.arrays.keys():
            continue
        pair = stored, found
        if signal.family == "logits":  # `recompute` has added arrays that the table does not declare
            at_targets = {name: a[used] for name, a in found.items() if name in signal.arrays or name not in ARRAYS}
            pair = {name: stored[name][used] for name in signal.arrays}, at_targets
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            errors |= signals[signal.name].compare(*pair)
    return {name: np.where(np.isfinite(e), e, np.inf).ravel() for name, e in errors.items()}
