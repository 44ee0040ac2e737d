"""Scores and predictions of every model and seed, and their JSON file.

The file is written after every run, so that a stopped evaluation resumes.
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
    """One fine-tuning. Scores in 0..1; `chosen_score` is that on dev, None if dev is the reported split.

    `predictions` [items][labels] in the order of the reported split.
    """

    seed: int
    score: float
    chosen_score: float | None
    seconds: float
    predictions: list[list[str]]


@dataclass(frozen=True)
class ModelResult:
    """A model and its runs, in ascending order of seeds. `sha256` identifies its weights, `name` is as given.

    `size_mib` counts the float32 weights with the task's head, as `--output` writes them. `truncated` items of the
    reported split were cut at `max_length` tokens; `unseen` words of it are not in the inputs.
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
        """The sample standard deviation over the seeds, None for one seed."""
        return float(np.std(self.scores, ddof=1)) if len(self.runs) > 1 else None

    def of_seeds(self, seeds: Sequence[int]) -> "ModelResult":
        return replace(self, runs=tuple(run for run in self.runs if run.seed in seeds))


@dataclass(frozen=True)
class Subject:
    """The data and settings that all results in a file share, so that their scores are comparable.

    The checksums are those of texts and labels; `epochs` to `max_length` are the options, None for the default.
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
    """The content of a results file. `gold` [items][labels] are the labels of the reported split."""

    subject: Subject
    gold: list[list[str]]
    models: tuple[ModelResult, ...]

    def find(self, sha256: str) -> ModelResult | None:
        return next((model for model in self.models if model.sha256 == sha256), None)

    def updated(self, model: ModelResult) -> "Results":
        """Return the results with this model added, or replacing one of the same weights."""
        known = [model if one.sha256 == model.sha256 else one for one in self.models]
        return replace(self, models=tuple(known if self.find(model.sha256) else [*known, model]))


def open_results(path: Path, subject: Subject, gold: list[list[str]]) -> Results:
    """Return the results in `path`, or empty ones if there is no file.

    Raises CometError for any other file, and for results of another subject, listing the fields that differ.
    """
    if not path.exists():
        return Results(subject, gold, ())
    try:
        found = _results_of(json.loads(path.read_bytes()))
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


def _results_of(content: Any) -> Results:
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']}, expected {FORMAT}")
    models = [
        ModelResult(**(one | {"how": FineTuning(**one["how"]), "runs": tuple(Run(**run) for run in one["runs"])}))
        for one in content["models"]
    ]
    return Results(Subject(**content["subject"]), content["gold"], tuple(models))


def save_results(path: Path, results: Results) -> None:
    """Write the file atomically. Raises CometError if it cannot be written."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"format": FORMAT} | asdict(results), ensure_ascii=False), encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise CometError(f"--results {path}: cannot be written ({error.strerror})") from error
