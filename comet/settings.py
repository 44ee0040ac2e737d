"""The settings of a training, and its result."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_tools.checks import LARGEST_SEED, as_path, require_number, require_text, require_truth, require_whole
from cache_tools.errors import CometError
from cache_tools.store.reader import Cache
from comet.recipes import as_option, choose_objective
from comet.student.sizes import require_size
from comet.train.objective import DEFAULT, Objective

if TYPE_CHECKING:
    from comet.report.analysis import AnnotatedRow
    from comet.student.family import StudentShape
    from comet.student.vocabulary import StudentVocabulary
    from comet.train.validation import Validation

CHOICES = {"vocabulary": ("auto", "full", "trimmed"), "dtype": ("auto", "float32", "bfloat16")}


@dataclass(frozen=True)
class StudentConfig:
    """The options of `comet-train`. `epochs`, `batch_size` and `learning_rate` default to the objective's.

    `student` is auto, a size, or a JSON file; `vocabulary` auto, full or trimmed; `init` auto, start, cache, random, or
    the folder of an earlier student; `dtype`, of the body, auto, float32 or bfloat16; `arguments` are further fields of
    transformers' TrainingArguments. Each of several caches is sampled in proportion to its rows to the power of
    `language_alpha`. Validation is every `validate_steps`, by default after every epoch. A checkpoint is written every
    `save_minutes` into the folder `OUTPUT.checkpoints`, from which `resume` continues. The output, the objective, as
    `--recipe` takes it, and the values of `arguments` may be given as text. Raises CometError for an invalid value.
    """

    output: Path
    student: str = "auto"
    vocabulary: str = "auto"
    init: str = "auto"
    objective: Objective = DEFAULT
    epochs: float | None = None
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    language_alpha: float = 1.0
    seed: int = 0
    dtype: str = "auto"
    resume: bool = False
    save_minutes: float = 10.0
    validate_steps: int | None = None
    arguments: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", as_path(self.output, "--output"))
        for name in ("student", "vocabulary", "init", "dtype"):
            require_text(getattr(self, name), f"--{name}", CHOICES.get(name, ()))
        require_size(self.student)
        if isinstance(self.objective, str):
            object.__setattr__(self, "objective", choose_objective(self.objective))
        if not isinstance(self.objective, Objective):
            found = type(self.objective).__name__
            raise CometError(f"objective: expected an Objective, or what --recipe takes, found {found}", exit_code=2)
        for name in ("steps", "batch_size", "validate_steps"):
            if getattr(self, name) is not None:
                require_whole(getattr(self, name), f"--{name.replace('_', '-')}", 1)
        for name in ("epochs", "learning_rate"):
            if getattr(self, name) is not None:
                require_number(getattr(self, name), f"--{name.replace('_', '-')}", above=True)
        if self.epochs is not None and self.steps is not None:
            raise CometError("--epochs and --steps: expected one of them", exit_code=2)
        require_number(self.language_alpha, "--language-alpha", 0, 1, above=True)
        require_number(self.save_minutes, "--save-minutes")
        require_whole(self.seed, "--seed", 0, LARGEST_SEED)
        require_truth(self.resume, "--resume")
        if self.arguments != ():
            from comet.train.arguments import checked_settings  # which loads torch

            object.__setattr__(self, "arguments", checked_settings(self.arguments))


@dataclass(frozen=True)
class Distilled:
    """The result of a training: the student's folder, what it began with, and its validation before and after.

    The student is the best checkpoint, that of `best_step`. There are fewer `steps` than `planned_steps` if validations
    brought no improvement. `row_before` and `row_after` are its predictions in the first validation row.
    `of_each_cache` is its validation on the rows of each that has some, by name, if there are several.
    """

    output: Path
    shape: "StudentShape"
    begins_with: str
    vocabulary: "StudentVocabulary"
    parameters: int
    teacher_parameters: int
    before: "Validation"
    after: "Validation"
    row_before: "AnnotatedRow"
    row_after: "AnnotatedRow"
    steps: int
    planned_steps: int
    best_step: int
    seconds: float
    of_each_cache: Mapping[str, "Validation"] = field(default_factory=dict)


def run_identity(config: StudentConfig, caches: Sequence[Cache]) -> dict[str, Any]:
    """Return all settings, by name, that a resumed training must share with the one it continues; plain JSON.

    The fields of the objective and of each cache's recipe are entries of their own, so that messages can name them.
    """
    chosen = asdict(config)
    for name in ("output", "resume", "save_minutes"):
        del chosen[name]
    chosen |= {f"objective {name}": value for name, value in chosen.pop("objective").items()}
    for number, cache in enumerate(caches, 1):
        chosen |= {f"cache {number} {name}": value for name, value in asdict(cache.recipe).items()}
        chosen[f"cache {number} id"] = cache.cache_id
    identity: dict[str, Any] = json.loads(json.dumps(chosen))
    return identity


def as_options(config: StudentConfig, caches: Sequence[str]) -> dict[str, Any]:
    """Return the options of `comet-train` that give these settings and name these caches."""
    return {
        "cache": list(caches),
        "output": str(config.output),
        "student": config.student,
        "vocabulary": config.vocabulary,
        "init": config.init,
        "recipe": as_option(config.objective),
        "epochs": None if config.steps else config.epochs,
        "steps": config.steps,
        "batch-size": config.batch_size or config.objective.batch_size,
        "learning-rate": config.learning_rate,
        "language-alpha": config.language_alpha,
        "validate-steps": config.validate_steps,
        "seed": config.seed,
        "dtype": config.dtype,
        "save-minutes": config.save_minutes,
        "set": dict(config.arguments),
    }
