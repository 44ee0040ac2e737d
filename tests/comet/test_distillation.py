"""After the last step nothing is lost: by a signal, or a failure, while the student is measured or saved."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from cache_tools import Cache
from cache_tools.errors import CometError
from comet.distillation import distill
from comet.settings import Distilled, StudentConfig
from comet.train.trainer import DistillationTrainer


@pytest.fixture
def config(tmp_path: Path) -> StudentConfig:
    return StudentConfig(tmp_path / "student", student="nano", dtype="float32", steps=2)


def interrupt(patch: pytest.MonkeyPatch, name: str) -> None:
    """Send SIGINT when this function is called; it does its work all the same."""
    real = resolve_name(name)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **kwargs)

    patch.setattr(name, interrupted)


def resumed(cache: Cache, config: StudentConfig, patch: pytest.MonkeyPatch) -> Distilled:
    """Save what was kept, without another step."""
    patch.setattr(DistillationTrainer, "train", None)
    result = distill([cache], replace(config, resume=True))
    patch.undo()
    folder = config.output.parent
    assert sorted(path.name for path in folder.iterdir()) == ["student", "student.html", "student.toml"]
    return result


@pytest.mark.parametrize("stage", ["comet.distillation._result", "comet.output.analyse", "comet.output._write_student"])
def test_a_signal_after_the_last_step_keeps_what_was_trained(
    cache: Cache, config: StudentConfig, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, stage)
        with pytest.raises(KeyboardInterrupt) as stopped:
            distill([cache], config)
    kept = f"the trained student is kept in {config.output}.checkpoints: run again with --resume"
    assert str(stopped.value) == f"stopped before the student was saved; {kept}"
    assert resumed(cache, config, monkeypatch).steps == 2


def test_a_second_signal_does_not_lose_what_is_being_kept(
    cache: Cache, config: StudentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, "comet.output.analyse")
        interrupt(patch, "comet.train.checkpoints.seal")
        with pytest.raises(KeyboardInterrupt, match="the trained student is kept in"):
            distill([cache], config)
    assert resumed(cache, config, monkeypatch).steps == 2


def test_a_student_that_cannot_be_measured_is_measured_after_a_resume(
    cache: Cache, config: StudentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice: what a resumed training could not save either is still there."""

    def fail(*args: object) -> None:
        raise CometError("the shard is damaged")

    message = (
        rf"^the shard is damaged; the trained student is kept in {config.output}\.checkpoints: run again with --resume$"
    )
    with monkeypatch.context() as patch:
        patch.setattr("comet.distillation._result", fail)
        for again in (False, True):
            with pytest.raises(CometError, match=message):
                distill([cache], replace(config, resume=again))
    assert resumed(cache, config, monkeypatch).steps == 2
