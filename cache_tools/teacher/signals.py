"""The teacher's side of every signal: one class each, which computes its arrays and compares those of two runs."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from torch import Tensor

from cache_tools.signals import ARRAYS, UNUSED_POSITION, kept_signals
from cache_tools.store.recipe import Recipe
from cache_tools.teacher.attention import PooledAttention
from cache_tools.teacher.comparison import Arrays, Errors
from cache_tools.teacher.head import BlockedHead
from cache_tools.teacher.model import Observation
from cache_tools.teacher.threshold import ThresholdLogits
from cache_tools.teacher.topk import TopkLogits


class TeacherSignal(Protocol):
    """What a signal of `cache_tools.signals` needs on the teacher's side. Arrays of logits are [T, …], at targets."""

    def compute(self, observed: Observation, head: BlockedHead) -> dict[str, Tensor]:
        """Return the signal's arrays of a batch, on the device and in their stored dtypes."""

    def recompute(self, stored: Arrays, features: Tensor, head: BlockedHead) -> dict[str, Tensor]:
        """Return arrays that are not stored, but that a comparison with the `stored` ones needs."""

    def compare(self, stored: Arrays, found: Arrays) -> Errors:
        """Return the errors of this signal's measures."""


_CLASSES: dict[str, Callable[[Recipe], TeacherSignal]] = {
    "threshold": ThresholdLogits,
    "topk": TopkLogits,
    "attention": PooledAttention,
}


def teacher_signals(recipe: Recipe) -> dict[str, TeacherSignal]:
    """The signals of a cache by name."""
    return {signal.name: _CLASSES[signal.name](recipe) for signal in kept_signals(recipe)}


def errors_of(stored: Arrays, found: Arrays, recipe: Recipe) -> Errors:
    """By measure of the table, a number for each value, flat; infinite where one of the two runs has no number.

    `stored` are rows of a cache with `target_position` and `length`, `found` the teacher's arrays of the same rows. A
    signal is compared if both hold all of its arrays.
    """
    used = stored["target_position"] != UNUSED_POSITION  # [R, M]
    errors: Errors = {}
    signals = teacher_signals(recipe)
    for signal in kept_signals(recipe):
        if not stored.keys() & found.keys() >= signal.arrays.keys():
            continue
        here, there = stored, found
        if signal.family == "logits":  # of which `recompute` has added arrays that no table declares
            here = {name: stored[name][used] for name in signal.arrays}
            there = {name: a[used] for name, a in found.items() if name in signal.arrays or name not in ARRAYS}
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            errors |= signals[signal.name].compare(here, there)
    return {name: np.where(np.isfinite(e), e, np.inf).ravel() for name, e in errors.items()}
