"""What `comet-eval` has found: scores and predictions of every model and seed, and the JSON file that holds them.

The file is written after every run, so that a stopped evaluation goes on where it was.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cache_tools.errors import CometError
from comet.evaluate.finetuning import FineTuning

FORMAT = 1


@dataclass(frozen=True)
class Run:
    """One fine-tuning. Scores in 0..1; `chosen_score` is that on dev, None where dev is what is reported.

    `predictions` [items][labels] in the order of the reported split.
    """

    seed: int
    score: float
    chosen_score: float | None
    seconds: float
    predictions: list[list[str]]


@dataclass(frozen=True)
class ModelResult:
    """A model and its runs, by rising seed. `sha256` identifies its weights, `name` is what a person called it.

    `size_mib` are its weights in float32 with the task's head, as `--output` writes them; `truncated` items of the
    reported split were cut at `max_length` tokens, and the model was not shown `unseen` words of them.
    """

    name: str
    sha256: str
    parameters: int
    size_mib: float
    max_length: int
    truncated: int
    unseen: int
    how: FineTuning
    latency_ms: float
    runs: tuple[Run, ...]

    @property
    def scores(self) -> list[float]:
        return [run.score for run in self.runs]

    @property
    def mean(self) -> float:
        return float(np.mean(self.scores))

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds, None for one seed."""
        return float(np.std(self.scores, ddof=1)) if len(self.runs) > 1 else None

    def of_seeds(self, seeds: Sequence[int]) -> "ModelResult":
        return replace(self, runs=tuple(run for run in self.runs if run.seed in seeds))


@dataclass(frozen=True)
class Subject:
    """What every result in a file has in common: with another subject the scores could not be compared.

    The checksums are those of texts and labels; `epochs` to `max_length` are as asked for, None for the default.
    """

    task: str
    language: str
    train_sha256: str
    reported: str
    reported_sha256: str
    epochs: int
    batch_size: int
    learning_rate: float | None
    max_length: int | None


@dataclass(frozen=True)
class Results:
    """A file of results. `gold` [items][labels] are the labels of the reported split."""

    subject: Subject
    gold: list[list[str]]
    models: tuple[ModelResult, ...]

    def find(self, sha256: str) -> ModelResult | None:
        return next((model for model in self.models if model.sha256 == sha256), None)

    def updated(self, model: ModelResult) -> "Results":
        """With this model's result in place of an earlier one of the same weights."""
        known = [model if one.sha256 == model.sha256 else one for one in self.models]
        return replace(self, models=tuple(known if self.find(model.sha256) else [*known, model]))


def open_results(path: Path, subject: Subject, gold: list[list[str]]) -> Results:
    """The results of an earlier call, or none yet.

    Raises CometError for a file that holds something else, and for one about another subject, field by field.
    """
    if not path.exists():
        return Results(subject, gold, ())
    try:
        found = results_of(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CometError(
            f"--results {path}: not a file of comet-eval, or damaged ({type(error).__name__}: {error}); "
            "give another file, or remove it",
            exit_code=2,
        ) from error
    asked, there = asdict(subject), asdict(found.subject)
    if different := [f"{name} {there[name]}, now {asked[name]}" for name in asked if asked[name] != there[name]]:
        raise CometError(
            f"--results {path}: was made with {'; '.join(different)}; give another file, or the same options",
            exit_code=2,
        )
    return found


def results_of(content: Any) -> Results:
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']}, expected {FORMAT}")
    models = [
        ModelResult(**(one | {"how": FineTuning(**one["how"]), "runs": tuple(Run(**run) for run in one["runs"])}))
        for one in content["models"]
    ]
    return Results(Subject(**content["subject"]), content["gold"], tuple(models))


def save_results(path: Path, results: Results) -> None:
    """Writes the file whole or not at all. Raises CometError when it cannot be written."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"format": FORMAT} | asdict(results), ensure_ascii=False), encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise CometError(f"--results {path}: cannot be written ({error.strerror})") from error
