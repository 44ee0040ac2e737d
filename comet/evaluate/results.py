"""Scores and predictions of every model and seed, and their JSON file.

The file is written after every run, so that a stopped evaluation resumes. Several evaluations may share a file: each
adds its runs to those that are there by then, one at a time.
"""

import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from cache_tools.errors import CometError
from cache_tools.places.destinations import writing
from cache_tools.store.records import sync_folder, write_durably
from comet.evaluate.finetuning import FineTuning

FORMAT = 1
LOCK_SECONDS = 60  # seconds for another evaluation to write the file


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

    @property
    def only_label(self) -> str | None:
        """The label that is predicted everywhere, as by a fine-tuning that has learnt nothing; None if several are."""
        labels = {label for of_item in self.predictions for label in of_item}
        return labels.pop() if len(labels) == 1 else None


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

    def missing(self, seeds: int) -> list[int]:
        """Return which of the seeds 0 to `seeds` − 1 have no run yet."""
        return sorted(set(range(seeds)) - {run.seed for run in self.runs})

    def with_run(self, run: Run) -> "ModelResult":
        return replace(self, runs=tuple(sorted((*self.runs, run), key=lambda one: one.seed)))

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

    def with_runs(self, model: ModelResult) -> ModelResult:
        """Return the model with the runs of the same weights in these results.

        Raises CometError if these were fine-tuned differently, as by a version of Comet with another default.
        """
        there = self.find(model.sha256)
        if there is not None and there.how != model.how:
            changed = [
                f"{name.replace('_', ' ')} {value:g}, now {getattr(model.how, name):g}"
                for name, value in asdict(there.how).items()
                if value != getattr(model.how, name)
            ]
            raise CometError(
                f"--results: its runs of {there.name} were made with {', '.join(changed)}; give another file, or these "
                "values",
                exit_code=2,
            )
        return replace(model, runs=there.runs if there else ())

    def updated(self, model: ModelResult) -> "Results":
        """Return the results with this model added. One of the same weights keeps its runs and takes over the rest."""
        there = self.find(model.sha256)
        runs = {run.seed: run for run in (*model.runs, *(there.runs if there else ()))}
        model = replace(model, runs=tuple(runs[seed] for seed in sorted(runs)))
        known = [model if one.sha256 == model.sha256 else one for one in self.models]
        return replace(self, models=tuple(known if there else [*known, model]))


def open_results(path: Path, subject: Subject, gold: list[list[str]]) -> Results:
    """Return the results in `path`, or empty ones if there is no file.

    Raises CometError for any other file, and for results of another subject, saying what differs.
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
    changed = [name for name in asked if asked[name] != there[name]]
    contents = {"train_sha256": "train", "reported_sha256": subject.reported}
    different = [f"{name} {there[name]}, now {asked[name]}" for name in changed if name not in contents]
    if splits := [contents[name] for name in changed if name in contents]:
        different.append(f"other texts or labels in {' and '.join(splits)} than there are now")
    if different:
        raise CometError(
            f"--results {path}: was made with {'; '.join(different)}; give another file, or the same options and data",
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


def add_to_results(path: Path, empty: Results, model: ModelResult) -> Results:
    """Add a model and its runs to the file as it is by now, and return what it holds then.

    `empty` has the subject. Raises CometError as `open_results` does, and if the file cannot be written.
    """
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_SECONDS)
    with writing(path, "runs in it are safe; make room, then run the same command again"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with lock:
                results = open_results(path, empty.subject, empty.gold).updated(model)
                _replace_durably(path, json.dumps({"format": FORMAT} | asdict(results), ensure_ascii=False).encode())
        except filelock.Timeout:
            raise CometError(f"--results {path}: {lock.lock_file} is locked; is another evaluation stuck?") from None
    return results


def _replace_durably(path: Path, data: bytes) -> None:
    """Write a file that takes the place of the present one once it is on the disk."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        write_durably(part, data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)
