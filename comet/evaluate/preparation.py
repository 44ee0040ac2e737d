"""Prepare an evaluation: load and check all but its models, in every language, before the first fine-tuning."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cache_tools.errors import CometError
from cache_tools.models import choose_device
from cache_tools.text.languages import find_language
from comet.evaluate.datasets import TaskData, load_task
from comet.evaluate.results import Results, Subject, open_results
from comet.evaluate.settings import EvaluationSettings, require_models, require_places
from comet.evaluate.tasks import find_task
from comet.report.summary import counted


@dataclass(frozen=True)
class Preparation:
    """An evaluation in one language that can begin. `empty` are its results before the first run."""

    settings: EvaluationSettings
    data: TaskData
    empty: Results
    device: torch.device


def prepare(settings: Sequence[EvaluationSettings]) -> list[Preparation]:
    """Prepare an evaluation in one or several languages.

    Raises CometError for wrong options, names that no model can have, unusable data or the same in two languages, a
    results file of other settings, and places where nothing can be written.
    """
    task = find_task(settings[0].task)
    for one in settings:
        require_models(one)
        require_places(one)
    device = choose_device(settings[0].device)
    alone = len(settings) == 1
    data = [load_task(task, find_language(one.language).code, one.data, alone) for one in settings]
    for of_language in data:
        _require_labels(of_language)
        _require_unseen(of_language)
    _require_own_data(data)
    prepared = []
    for one, of_language in zip(settings, data, strict=True):
        gold = [list(example.labels) for example in of_language.reported.examples]
        empty = Results(_subject_of(one, of_language), gold, ())
        open_results(one.results_path, empty.subject, empty.gold)
        prepared.append(Preparation(one, of_language, empty, device))
    return prepared


def _require_labels(data: TaskData) -> None:
    """Raise CometError if all of train has one label: whatever is fine-tuned on it says that label alone."""
    labels = [label for example in data.train.examples for label in example.labels]
    if len(set(labels)) == 1:
        things = counted(len(labels), "word" if data.task.tagging else "item")
        raise CometError(
            f"--lang {data.language}: the train split ({data.train.origin}) has the label {labels[0]} alone, in "
            f"{things}: nothing can be learnt from it; get the whole split from {data.task.source}",
            exit_code=2,
        )


def _require_unseen(data: TaskData) -> None:
    """Raise CometError if every reported text is in train, as when one file was copied to the other's name."""
    train, reported = data.train, data.reported
    if data.learnt_items == len(reported.examples):
        raise CometError(
            f"--lang {data.language}: every text of the {reported.name} split ({reported.origin}) is also in train "
            f"({train.origin}): a score would say what was learnt by heart; get both splits from {data.task.source}",
            exit_code=2,
        )


def _require_own_data(data: Sequence[TaskData]) -> None:
    """Raise CometError if two languages have the same texts and labels: one of them would get the other's scores."""
    first: dict[str, str] = {}
    for one in data:
        if (other := first.setdefault(one.reported.sha256(), one.language)) != one.language:
            raise CometError(
                f"--lang {one.language}: its {one.reported.name} split ({one.reported.origin}) holds the same texts "
                f"and labels as that of {other}; give each language its own files",
                exit_code=2,
            )


def _subject_of(settings: EvaluationSettings, data: TaskData) -> Subject:
    return Subject(
        task=data.task.name,
        language=data.language,
        train_sha256=data.train.sha256(),
        reported=data.reported.name,
        reported_sha256=data.reported.sha256(),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        max_length=settings.max_length,
    )
