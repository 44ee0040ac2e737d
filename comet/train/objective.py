"""Training objectives: losses, weights and the optimiser's settings, and the two that are built in."""

import math
from dataclasses import dataclass

from cache_tools.checks import require_number, require_text, require_truth, require_whole, shown
from cache_tools.errors import CometError

SHAPES = ("linear", "cosine")
MOST = 1e9  # of any weight, temperature or rate


@dataclass(frozen=True)
class Schedule:
    """A weight that goes from `start` to `end`, linearly or along half a cosine.

    Raises CometError if a weight is negative or not finite, or the shape is neither.
    """

    start: float
    end: float
    shape: str = "linear"

    def __post_init__(self) -> None:
        require_number(self.start, "start", most=MOST)
        require_number(self.end, "end", most=MOST)
        require_text(self.shape, "shape", SHAPES)

    def at(self, progress: float) -> float:
        way = progress if self.shape == "linear" else (1 - math.cos(math.pi * progress)) / 2
        return self.start + (self.end - self.start) * way

    def __str__(self) -> str:
        return f"{self.start:g} to {self.end:g} ({self.shape})"


@dataclass(frozen=True)
class Steps:
    """A temperature that changes in steps: pairs of the progress at which it begins, and the temperature.

    Raises CometError unless temperatures are above 0, and progress rises from 0 and stays below 1.
    """

    pairs: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        _require_pairs(self.pairs, "temperature", "[[0, 2.0], [0.5, 1.0]]")
        for begin, temperature in self.pairs:
            require_number(begin, "temperature: begins at", most=1)
            require_number(temperature, "temperature", most=MOST, above=True)
        begins = [begin for begin, _ in self.pairs]
        if begins[0] != 0 or sorted(set(begins)) != begins or begins[-1] >= 1:
            raise CometError(
                f"temperature begins at {begins}: expected rising shares of the training, 0 first, below 1", exit_code=2
            )

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
    """Return whether the weight is ever above 0."""
    return weight.start > 0 or weight.end > 0 if isinstance(weight, Schedule) else weight > 0


def temperatures_of(value: Temperature) -> tuple[float, ...]:
    """Return all temperatures of a training, in order."""
    return tuple(t for _, t in value.pairs) if isinstance(value, Steps) else (value,)


def described(value: object) -> str:
    """Format a weight, temperature or any other setting for a reader; None is the default."""
    if value is None:
        return "default"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _require_pairs(value: object, name: str, example: str) -> None:
    """Raise CometError, with the name of the value, unless it is a tuple of pairs that is not empty."""
    pairs = value if isinstance(value, tuple) else ()
    if not pairs or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise CometError(f"{name} {shown(value)}: expected pairs, such as {example}", exit_code=2)


CHOICES = {"logit_loss": ("kl", "residual"), "attention_loss": ("cross_entropy", "mse", "projection")}
"""The losses of `comet.train.signals` and `comet.train.losses` by name: torch is not loaded to refuse another one."""
WEIGHTS = ("kd_weight", "hard_weight", "attention_weight")
START_STEPS = 1000  # after which longer trainings from the start, on one view of a text, came no nearer


@dataclass(frozen=True)
class Objective:
    """The losses of a training and their weights. A weight of 0 leaves a loss out; a weight may follow a Schedule, and
    the temperature Steps.

    `logit_loss` is kl (over the kept tokens and their tail as one event, or over a threshold sample, depending on the
    cache) or residual (the tail added to the label). `layer_map` pairs (teacher layer, student layer), from 0, or from
    the last as −1; None matches them by depth. `learning_rate` is the peak for a student of width 256 whose body is
    random, `start_learning_rate` for one that begins with the teacher's layers or continues an earlier student;
    with `scales_with_width` narrower ones take proportionally larger steps. The first is trained for `epochs`, the
    others for `start_epochs`, or more, up to `epochs`, until these are START_STEPS. Raises CometError for invalid
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
        require_text(self.name, "name")
        for name in WEIGHTS:
            if not isinstance(getattr(self, name), Schedule):
                require_number(getattr(self, name), name, most=MOST)
        if not isinstance(self.temperature, Steps):
            require_number(self.temperature, "temperature", most=MOST, above=True)
        for name, choices in CHOICES.items():
            require_text(getattr(self, name), name, choices)
        for name in ("learning_rate", "start_learning_rate"):
            require_number(getattr(self, name), name, most=MOST, above=True)
        for name in ("epochs", "start_epochs", "patience", "batch_size"):
            require_whole(getattr(self, name), name, 1)
        require_number(self.dropout, "dropout", most=0.99)
        require_truth(self.scales_with_width, "scales_with_width")
        if self.layer_map is not None:
            _require_pairs(self.layer_map, "layer_map", "[[-1, -1]]; for no attention give attention_weight = 0")
            for pair in self.layer_map:
                for layer in pair:
                    require_whole(layer, "layer_map", -(2**31))

    def peak_learning_rate(self, hidden: int, has_learnt: bool) -> float:
        """Return the peak for a student of this width whose body has learnt before, or is random."""
        rate = self.start_learning_rate if has_learnt else self.learning_rate
        return rate * 256 / hidden if self.scales_with_width else rate

    def default_epochs(self, steps: float, has_learnt: bool) -> float:
        """Return the epochs of a training with `steps` steps in each, for a student whose body has learnt before, or is
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
    ),
)
