"""The settings of a training, and its result."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cache_tools.errors import CometError
from cache_tools.store.reader import Cache
from comet.student.family import StudentShape
from comet.student.vocabulary import StudentVocabulary
from comet.train.objective import DEFAULT, Objective
from comet.train.validation import Validation


@dataclass(frozen=True)
class StudentConfig:
    """The options of `comet-train`. `epochs`, `batch_size` and `learning_rate` default to the objective's.

    `student` is auto, a size, or a JSON file; `vocabulary` auto, full or trimmed; `init` auto, start, cache, random, or
    the folder of an earlier student; `dtype`, of the body, auto, float32 or bfloat16; `arguments` are further fields of
    transformers' TrainingArguments. Each of several caches is sampled in proportion to its rows to the power of
    `language_alpha`. Validation is every `validate_steps`, by default after every epoch. A checkpoint is written every
    `save_minutes` into the folder `OUTPUT.checkpoints`, from which `resume` continues. Raises CometError for numbers
    not above 0.
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
        for name in ("epochs", "steps", "batch_size", "learning_rate", "validate_steps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise CometError(f"--{name.replace('_', '-')} {value}: expected a number above 0", exit_code=2)
        if not 0 < self.language_alpha <= 1:
            raise CometError(f"--language-alpha {self.language_alpha:g}: expected above 0, up to 1", exit_code=2)


@dataclass(frozen=True)
class Distilled:
    """The result of a training: the student's folder, and its validation before and after.

    The student is the best checkpoint, that of `best_step`.
    """

    output: Path
    shape: StudentShape
    vocabulary: StudentVocabulary
    parameters: int
    teacher_parameters: int
    before: Validation
    after: Validation
    steps: int
    best_step: int
    seconds: float


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
