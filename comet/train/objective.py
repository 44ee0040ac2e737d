"""Training objectives: losses, weights and the optimiser's settings; two built in, others from TOML files."""

import math
import os
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from cache_tools.errors import CometError

SHAPES = ("linear", "cosine")


@dataclass(frozen=True)
class Schedule:
    """A weight that goes from `start` to `end`, linearly or along half a cosine.

    Raises ValueError if a weight is negative or not finite, or the shape is neither.
    """

    start: float
    end: float
    shape: str = "linear"

    def __post_init__(self) -> None:
        for value in (self.start, self.end):
            if not 0 <= value < math.inf:
                raise ValueError(f"{value}: expected a number of at least 0")
        if self.shape not in SHAPES:
            raise ValueError(f"shape {self.shape!r}: expected {' or '.join(SHAPES)}")

    def at(self, progress: float) -> float:
        way = progress if self.shape == "linear" else (1 - math.cos(math.pi * progress)) / 2
        return self.start + (self.end - self.start) * way

    def __str__(self) -> str:
        return f"{self.start:g} to {self.end:g} ({self.shape})"


@dataclass(frozen=True)
class Steps:
    """A temperature that changes in steps: pairs of the progress at which it begins, and the temperature.

    Raises ValueError unless temperatures are above 0, and progress rises from 0 and stays below 1.
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
LayerMap = tuple[tuple[int, int], ...]
"""Pairs of a teacher layer and a student layer."""


def at(value: Weight | Temperature, progress: float) -> float:
    """Return a weight or temperature at this progress, 0 to 1."""
    return value.at(progress) if isinstance(value, Schedule | Steps) else value


def is_used(weight: Weight) -> bool:
    """Tell whether the weight is ever above 0."""
    return weight.start > 0 or weight.end > 0 if isinstance(weight, Schedule) else weight > 0


def temperatures_of(value: Temperature) -> tuple[float, ...]:
    """Return all temperatures of a training, in order."""
    return tuple(t for _, t in value.pairs) if isinstance(value, Steps) else (value,)


def described(value: object) -> str:
    """Format a weight, temperature or any other setting for a reader; None is the default."""
    return f"{value:g}" if isinstance(value, float) else "default" if value is None else str(value)


MOST = 2**31 - 1
CHOICES = {"logit_loss": ("kl", "residual"), "attention_loss": ("cross_entropy", "mse", "projection")}
"""The losses of `comet.train.signals` and `comet.train.losses` by name: torch is not loaded to refuse another one."""
WEIGHTS = ("kd_weight", "hard_weight", "attention_weight")
START_STEPS = 1000  # after which longer trainings from the start, on one view of a text, came no nearer
NOT_IN_FILES = ("name", "differs_from_paper")


@dataclass(frozen=True)
class Objective:
    """The losses of a training and their weights. A weight of 0 leaves a loss out; a weight may follow a Schedule, and
    the temperature Steps.

    `logit_loss` is kl (over the kept tokens and their tail as one event, or over a threshold sample, depending on the
    cache) or residual (the tail added to the label). `layer_map` pairs (teacher layer, student layer), from 0, or from
    the last as −1; None matches them by depth. `learning_rate` is the peak for a student of width 256 whose body is
    random, `start_learning_rate` for one that begins with the teacher's layers or goes on from an earlier student;
    with `scales_with_width` narrower ones take proportionally larger steps. The first is trained for `epochs`, the
    others for `start_epochs`, or more, up to `epochs`, until these are START_STEPS. Raises ValueError for invalid
    values.
    """

    name: str
    kd_weight: Weight
    temperature: Temperature
    hard_weight: Weight
    attention_weight: Weight
    attention_loss: str
    dropout: float
    learning_rate: float
    start_learning_rate: float
    scales_with_width: bool
    epochs: int
    start_epochs: int
    patience: int  # validations without a better one after which training stops
    batch_size: int
    logit_loss: str = "kl"
    layer_map: LayerMap | None = None
    differs_from_paper: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in WEIGHTS:
            value = getattr(self, name)
            if not isinstance(value, Schedule) and not 0 <= value < math.inf:
                raise ValueError(f"{name} {value}: expected a number of at least 0")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} {getattr(self, name)!r}: expected {', '.join(choices)}")
        above_zero = ["learning_rate", "start_learning_rate", "epochs", "start_epochs", "patience", "batch_size"]
        for name in above_zero + ([] if isinstance(self.temperature, Steps) else ["temperature"]):
            if not 0 < getattr(self, name) <= MOST:
                raise ValueError(f"{name} {getattr(self, name):.6g}: expected a number above 0, up to {MOST}")
        if self.layer_map is not None and not self.layer_map:
            raise ValueError("layer_map: expected pairs of layers; for no attention give attention_weight = 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout}: expected 0 to below 1")

    def peak_learning_rate(self, hidden: int, has_learnt: bool) -> float:
        """Return the peak for a student of this width whose body has learnt before, or is random."""
        rate = self.start_learning_rate if has_learnt else self.learning_rate
        return rate * 256 / hidden if self.scales_with_width else rate

    def default_epochs(self, steps: float, has_learnt: bool) -> float:
        """Return the length of a training of so many steps an epoch for a student whose body has learnt before, or is
        random."""
        return min(self.epochs, max(self.start_epochs, START_STEPS / steps)) if has_learnt else self.epochs


DEFAULT = Objective(
    name="default",
    kd_weight=1.0,
    temperature=1.0,
    hard_weight=0.0,
    attention_weight=1.0,
    attention_loss="cross_entropy",
    dropout=0.0,
    learning_rate=1.2e-3,
    start_learning_rate=2.5e-4,
    scales_with_width=True,
    epochs=15,
    start_epochs=5,
    patience=3,
    batch_size=16,
)

PAPER = Objective(
    name="paper",
    kd_weight=0.5,
    temperature=2.0,
    hard_weight=0.0,
    attention_weight=0.5,
    attention_loss="projection",
    dropout=0.1,
    learning_rate=5e-5,
    start_learning_rate=5e-5,
    scales_with_width=False,
    epochs=15,
    start_epochs=15,
    patience=3,
    batch_size=16,
    layer_map=((-1, -1),),
    differs_from_paper=(
        "logits are matched at masked positions only, as far as the cache keeps them",
        "of attention maps the cache holds a sample of queries and keys, pooled to m×m before the learned projection",
        "the student starts from the cached teacher embeddings and word frequencies",
        "float32 instead of fp16",
    ),
)

OBJECTIVES = {objective.name: objective for objective in (DEFAULT, PAPER)}


def choose_objective(requested: str | dict[str, Any]) -> Objective:
    """Return a built-in objective by name, or one that a TOML file, or a table of one, derives from it.

    Raises CometError if there is no such objective or file, or its names or values are invalid.
    """
    if isinstance(requested, dict):
        return _changed_objective(requested, "recipe", "--config: recipe")
    if requested in OBJECTIVES:
        return OBJECTIVES[requested]
    path = Path(requested)
    if not os.path.isfile(path):  # unlike Path.is_file, also False for a name that no disk takes
        raise CometError(
            f"--recipe {requested}: no such objective; expected {', '.join(OBJECTIVES)}, or a TOML file", exit_code=2
        )
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # tomllib's and Unicode's errors
        raise CometError(f"--recipe {requested}: {error}", exit_code=2) from None
    return _changed_objective(given, path.stem, f"--recipe {requested}")


def _changed_objective(given: dict[str, Any], name: str, where: str) -> Objective:
    """Return the objective `base`, by default DEFAULT, with the given changes. Raises CometError, `where` first."""
    given = dict(given)
    try:
        base = OBJECTIVES.get(given.pop("base", DEFAULT.name))
        if base is None:
            raise ValueError(f"base: expected {' or '.join(OBJECTIVES)}")
        known = {field.name for field in fields(Objective)} - set(NOT_IN_FILES)
        if unknown := sorted(set(given) - known):
            raise ValueError(f"there is no {', '.join(unknown)}; there are {', '.join(sorted(known))}")
        changed = {field: _of_toml(field, value, getattr(base, field)) for field, value in given.items()}
        return replace(base, name=name, differs_from_paper=(), **changed)
    except (ValueError, TypeError) as error:
        raise CometError(f"{where}: {error}", exit_code=2) from None


def as_option(objective: Objective) -> str | dict[str, Any]:
    """Return the value for `choose_objective` that gives this objective: a built-in name, else a table."""
    if objective in OBJECTIVES.values():
        return objective.name
    table = asdict(objective)  # a Schedule becomes the table that `_of_toml` takes
    if isinstance(objective.temperature, Steps):
        table["temperature"] = objective.temperature.pairs
    return {name: value for name, value in table.items() if name not in NOT_IN_FILES}


def _of_toml(name: str, value: Any, example: Any) -> Any:
    """Convert a field's value from TOML. Raises ValueError if it is of another type than `example`."""
    if name in WEIGHTS and isinstance(value, dict):
        if not {"start", "end"} <= set(value) <= {"start", "end", "shape"}:
            raise ValueError(f'{name}: expected a number or {{ start = 1.0, end = 0.0, shape = "linear" }}')
        return Schedule(_number(name, value["start"]), _number(name, value["end"]), value.get("shape", "linear"))
    if name == "temperature" and isinstance(value, list):
        return Steps(tuple((_number(name, begin), _number(name, t)) for begin, t in _pairs(name, value)))
    if name == "layer_map":
        return tuple((_whole(name, teacher), _whole(name, student)) for teacher, student in _pairs(name, value))
    if isinstance(example, bool | str):
        if not isinstance(value, type(example)):
            raise ValueError(f"{name} {value!r}: expected {'true or false' if isinstance(example, bool) else 'text'}")
        return value
    return _whole(name, value) if isinstance(example, int) else _number(name, value)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} {value!r}: expected a number")
    if not abs(value) < MOST:
        raise ValueError(f"{name}: expected a number of at most {MOST}")
    return float(value)


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} {value!r}: expected a whole number")
    if abs(value) > MOST:
        raise ValueError(f"{name}: expected a whole number of at most {MOST}")
    return value


def _pairs(name: str, value: Any) -> list[tuple[Any, Any]]:
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise ValueError(f"{name} {value!r}: expected pairs, such as [[0, 2.0], [0.5, 1.0]]")
    return [(first, second) for first, second in value]
