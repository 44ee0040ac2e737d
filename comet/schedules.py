"""Weights and temperatures that change while a student trains, as functions of its progress from 0 to 1."""

import math
from dataclasses import dataclass

SHAPES = ("linear", "cosine")


@dataclass(frozen=True)
class Schedule:
    """A weight that goes from `start` to `end`, in a straight line or along half a cosine.

    Raises ValueError for weights that are negative or no numbers, and for another shape.
    """

    start: float
    end: float
    shape: str = "linear"

    def __post_init__(self) -> None:
        for value in (self.start, self.end):
            if not 0 <= value < math.inf:
                raise ValueError(f"{value}: expected a number from 0 on")
        if self.shape not in SHAPES:
            raise ValueError(f"shape {self.shape!r}: expected {' or '.join(SHAPES)}")

    def at(self, progress: float) -> float:
        way = progress if self.shape == "linear" else (1 - math.cos(math.pi * progress)) / 2
        return self.start + (self.end - self.start) * way

    def __str__(self) -> str:
        return f"{self.start:g} to {self.end:g} ({self.shape})"


@dataclass(frozen=True)
class Steps:
    """A temperature that steps: (progress from which on, temperature) pairs, the first from 0 on.

    Raises ValueError for temperatures not above 0, and unless the progress rises from 0 and stays below 1.
    """

    pairs: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        begins = [begin for begin, _ in self.pairs]
        if not begins or begins[0] != 0 or sorted(set(begins)) != begins or begins[-1] >= 1:
            raise ValueError(
                f"temperature begins at {begins}: expected rising shares of the training, 0 first, below 1"
            )
        for _, temperature in self.pairs:
            if not 0 < temperature < math.inf:
                raise ValueError(f"temperature {temperature}: expected a number above 0")

    def at(self, progress: float) -> float:
        return next(temperature for begin, temperature in reversed(self.pairs) if progress >= begin)

    def __str__(self) -> str:
        return ", then ".join(f"{t:g}" + (f" from {begin:.0%} on" if begin else "") for begin, t in self.pairs)


Weight = float | Schedule
Temperature = float | Steps


def at(value: Weight | Temperature, progress: float) -> float:
    """What a weight or temperature is at this progress."""
    return value.at(progress) if isinstance(value, Schedule | Steps) else value


def is_used(weight: Weight) -> bool:
    """Whether a loss of this weight ever counts."""
    return weight.start > 0 or weight.end > 0 if isinstance(weight, Schedule) else weight > 0


def temperatures_of(value: Temperature) -> tuple[float, ...]:
    """All temperatures that it takes, in order."""
    return tuple(t for _, t in value.pairs) if isinstance(value, Steps) else (value,)


def described(value: object) -> str:
    """A weight, temperature or any other setting, as a person reads it; default where nothing was chosen."""
    return f"{value:g}" if isinstance(value, float) else "default" if value is None else str(value)
