"""A student, and what the tests of evaluations ask for."""

from pathlib import Path

import pytest
from helpers.small_tasks import write_topics

from cache_tools import Cache
from comet import distill
from comet.evaluate.settings import EvaluationSettings
from comet.settings import StudentConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def student(cache: Cache, folder: Path) -> Path:
    """What comet-train leaves, with its own trimmed vocabulary."""
    config = StudentConfig(folder / "student", student="nano", vocabulary="trimmed", steps=2, dtype="float32")
    distill([cache], config, say=lambda line: None)
    return config.output


@pytest.fixture(scope="module")
def asked(sample_teacher: Path, student: Path, folder: Path) -> EvaluationSettings:
    return EvaluationSettings(
        models=(str(sample_teacher), str(student)),
        task="sib200",
        language="rw",
        data=write_topics(folder / "data" / "kin").parent,
        results=folder / "results.json",
        output=folder / "deployed",
        seeds=2,
        epochs=2,
        batch_size=4,
    )
