"""Trainings that were killed or stopped go on to the very student that an undisturbed one gives, bit by bit."""

import hashlib
import json
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.builds import Running
from helpers.trainings import checkpoints_of, losses, start_training, wait_for_checkpoint

from cache_tools import Cache, build_cache
from cache_tools.errors import CometError
from cache_tools.settings import BuildSettings
from cache_tools.store.records import with_checksum
from comet.distillation import distill
from comet.settings import StudentConfig
from comet.train.checkpoints import Checkpoints, SaveCheckpoints, newest_checkpoint

STEPS = 40


def start(cache: Cache, output: Path, *options: str, steps: int = STEPS) -> Running:
    return start_training(cache, output, "--steps", str(steps), "--batch-size", "4", *options)


def digest(student: Path) -> str:
    return hashlib.sha256((student / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def undisturbed(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("undisturbed") / "student"
    ended = start(cache, output).wait()
    assert ended.code == 0, ended.stderr
    assert not output.with_name("student.checkpoints").exists()
    return digest(output)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_killed_at_any_moment_and_resumed_gives_the_same_student(
    cache: Cache, undisturbed: str, tmp_path: Path, seed: int
) -> None:
    """Twice: at a random step, and again a little later. SIGKILL may fall into the writing of a checkpoint."""
    output, chance = tmp_path / "student", random.Random(seed)
    options: list[str] = []
    for step in sorted(chance.sample(range(2, STEPS - 15), 2)):
        running = start(cache, output, *options)
        wait_for_checkpoint(running, output, step)
        time.sleep(chance.random() * 0.05)
        running.send(signal.SIGKILL)
        options = ["--resume"] if checkpoints_of(output) else []
    ended = start(cache, output, *options).wait()
    assert ended.code == 0, ended.stderr
    assert "resuming after step" in ended.stdout
    assert digest(output) == undisturbed
    assert not output.with_name("student.checkpoints").exists()


@pytest.mark.slow
def test_losses_go_on_to_the_last_bit(cache: Cache, tmp_path: Path) -> None:
    """Per step, in one that was stopped by SIGTERM and resumed, against one in a single run."""
    options = ["--set", "logging_steps=1"]
    found = []
    for name, stop_at in (("whole", None), ("stopped", 11)):
        output = tmp_path / name
        running = start(cache, output, *options, steps=60)
        if stop_at is not None:
            wait_for_checkpoint(running, output, stop_at)
            ended = running.send(signal.SIGTERM)
            assert ended.code == 1
            assert "stopping after a last checkpoint" in ended.stderr
            assert ended.stderr.splitlines()[-1].startswith("stopped after step ")
            assert ended.stderr.splitlines()[-1].endswith("run again with --resume to continue")
            assert not output.exists()
            running = start(cache, output, *options, "--resume", steps=60)
        wait_for_checkpoint(running, output, 27)
        running.send(signal.SIGKILL)
        newest = max(checkpoints_of(output), key=lambda path: int(path.name.split("-")[1]))
        found.append(losses(newest))
    both = min(len(history) for history in found)
    assert both >= 25
    assert found[0][:both] == found[1][:both]


def die_when_trained(cache: Cache, config: StudentConfig) -> None:
    """A training that is killed after its last step, before its student is saved."""
    kill = KeyboardInterrupt("killed")

    def die(self: object, *args: object, **kwargs: object) -> None:
        raise kill

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("comet.output._write_student", die)
        patch.setattr("comet.train.checkpoints.Checkpoints.keep_finished", die)
        with pytest.raises(KeyboardInterrupt):
            distill([cache], config)


@pytest.fixture
def stopped(cache: Cache, tmp_path: Path) -> StudentConfig:
    """What a training that was killed leaves, and its settings."""
    config = StudentConfig(tmp_path / "student", student="nano", steps=6, batch_size=4, save_minutes=0)
    die_when_trained(cache, config)
    assert len(checkpoints_of(config.output)) == 2, "the last two are kept"
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"steps": 6}, {"epochs": 1, "batch_size": 64}, {"epochs": 9, "batch_size": 64, "learning_rate": 0.05}],
    ids=["in the middle of an epoch", "at the end of one", "out of patience"],
)
def test_killed_after_the_last_step_resumes_to_the_same_student(
    cache: Cache, tmp_path: Path, options: dict[str, Any]
) -> None:
    config = StudentConfig(tmp_path / "whole", student="nano", dtype="float32", save_minutes=0, **options)
    whole, killed = distill([cache], config), replace(config, output=tmp_path / "killed")
    if "learning_rate" in options:
        assert whole.steps < 9 * 5 and whole.best_step < whole.steps, "it gave up"
    die_when_trained(cache, killed)
    resumed = distill([cache], replace(killed, resume=True))
    assert (resumed.steps, resumed.best_step) == (whole.steps, whole.best_step)
    assert digest(killed.output) == digest(whole.output)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(28, "No space left on device"),
            "cannot be written (No space left on device); make room; the trained student is kept",
        ),
        (CometError("it exists meanwhile"), "it exists meanwhile; the trained student is kept in "),
        (KeyboardInterrupt("impatient"), "impatient"),
    ],
)
def test_a_student_that_could_not_be_saved_is_not_trained_again(
    cache: Cache, tmp_path: Path, error: BaseException, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise error

    config = StudentConfig(tmp_path / "whole", student="nano", dtype="float32", steps=6)
    whole, failed = distill([cache], config), replace(config, output=tmp_path / "failed")
    with monkeypatch.context() as patch:
        patch.setattr("comet.output._write_student", fail)
        with pytest.raises(type(error) if isinstance(error, KeyboardInterrupt) else CometError) as caught:
            distill([cache], failed)
    assert said in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir() if "failed" in path.name) == ["failed.checkpoints"]
    monkeypatch.setattr("comet.train.trainer.DistillationTrainer.train", fail)
    resumed = distill([cache], replace(failed, resume=True))
    assert (resumed.steps, resumed.best_step, resumed.after) == (whole.steps, whole.best_step, whole.after)
    assert digest(failed.output) == digest(whole.output)
    assert (tmp_path / "failed.html").exists() and not (tmp_path / "failed.checkpoints").exists()


def test_an_unfinished_training_is_never_overwritten(cache: Cache, stopped: StudentConfig) -> None:
    before = sorted(p.name for p in stopped.output.with_name("student.checkpoints").rglob("*"))
    with pytest.raises(CometError, match=r"an earlier training was not finished; continue it with --resume, or remove"):
        distill([cache], stopped)
    assert before == sorted(p.name for p in stopped.output.with_name("student.checkpoints").rglob("*"))


def test_other_settings_are_refused_by_name(cache: Cache, stopped: StudentConfig) -> None:
    with pytest.raises(
        CometError, match=r"was begun differently \(batch_size: 4 before, 8 now; seed: 0 before, 1 now\)"
    ):
        distill([cache], replace(stopped, resume=True, batch_size=8, seed=1))


def test_other_steps_are_refused_without_a_word_on_the_epochs_that_follow(cache: Cache, stopped: StudentConfig) -> None:
    message = (
        rf"^--resume: the training in {stopped.output}\.checkpoints was begun differently \(steps: 6 before, not given "
        r"now\); give the options it was begun with, or remove that folder to start over without --resume$"
    )
    with pytest.raises(CometError, match=message):
        distill([cache], replace(stopped, resume=True, steps=None))


@pytest.mark.slow
def test_another_cache_or_recipe_is_refused_by_what_differs(
    cache: Cache, threshold_cache: Cache, settings: BuildSettings, stopped: StudentConfig
) -> None:
    masked_otherwise = build_cache(replace(settings, out=stopped.output.with_name("other.zarr"), seed=1))
    words = f"cache 1 keep: topk before, threshold now; cache 1 id: {cache.cache_id} before, {threshold_cache.cache_id}"
    with pytest.raises(CometError, match=rf"was begun differently \({words} now\); give the options"):
        distill([threshold_cache], replace(stopped, resume=True))
    with pytest.raises(CometError, match=r"\(.*cache 2 keep: not given before, topk now; .*cache 2 id: not given"):
        distill([cache, masked_otherwise], replace(stopped, resume=True))
    other = replace(stopped.objective, kd_weight=0.5)
    with pytest.raises(CometError, match=r"was begun differently \(objective kd_weight: 1.0 before, 0.5 now\)"):
        distill([cache], replace(stopped, resume=True, objective=other))


def test_a_resumed_training_has_as_many_processes(cache: Cache, stopped: StudentConfig) -> None:
    """With another number the losses would be equal within rounding only."""
    run = stopped.output.with_name("student.checkpoints") / "run.json"
    begun = json.loads(run.read_text())
    assert begun["processes"] == 1
    with_two = {name: value for name, value in begun.items() if name != "checksum"} | {"processes": 2}
    run.write_bytes(with_checksum(with_two))
    with pytest.raises(CometError, match=r"was begun differently \(processes: 2 before, 1 now\)"):
        distill([cache], replace(stopped, resume=True))


def test_nothing_to_resume(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(CometError, match=r"--resume: no complete checkpoint in .*; omit --resume"):
        distill([cache], StudentConfig(tmp_path / "student", student="nano", resume=True))
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "gone", "list gone", "list damaged"])
def test_a_damaged_checkpoint_is_never_taken(stopped: StudentConfig, damage: str) -> None:
    first, second = sorted(checkpoints_of(stopped.output), key=lambda path: int(path.name.split("-")[1]))
    victim = second / ("optimizer.pt" if damage in ("cut", "gone") else "complete.json")
    if damage == "cut":
        victim.write_bytes(victim.read_bytes()[:-1])
    elif damage == "list damaged":
        victim.write_bytes(victim.read_bytes().replace(b"a", b"b"))
    else:
        victim.unlink()
    assert newest_checkpoint(second.parent) == first


def test_what_a_crash_cut_off_is_not_kept_in_place_of_a_whole_checkpoint(
    cache: Cache, stopped: StudentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would count as the newest, and the first checkpoint of the resumed training would let the whole ones go."""
    first, second = sorted(checkpoints_of(stopped.output), key=lambda path: int(path.name.split("-")[1]))
    (second / "complete.json").unlink()
    (second.parent / "checkpoint-5.bak").mkdir()

    def refuse(folder: Path) -> None:
        raise CometError("the disk is full")

    monkeypatch.setattr("comet.train.checkpoints.seal", refuse)
    with pytest.raises(CometError, match="the disk is full"):
        distill([cache], replace(stopped, resume=True))
    assert newest_checkpoint(second.parent) == first


def test_another_shape_in_the_same_file_is_refused(cache: Cache, tmp_path: Path) -> None:
    shape = tmp_path / "shape.json"
    fields = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    shape.write_text(json.dumps(fields))
    config = StudentConfig(tmp_path / "student", student=str(shape), steps=6, batch_size=4, save_minutes=0)
    die_when_trained(cache, config)
    shape.write_text(json.dumps(fields | {"num_attention_heads": 2}))
    with pytest.raises(CometError, match=r"begun differently \(student: .*32, 4 heads.* before, .*32, 2 heads.* now\)"):
        distill([cache], replace(config, resume=True))


def test_one_training_at_a_time(cache: Cache, tmp_path: Path) -> None:
    config = StudentConfig(tmp_path / "student", student="nano", steps=2)
    folder = tmp_path / "student.checkpoints"
    with Checkpoints(folder, {}, resume=False), pytest.raises(CometError, match="another process is training"):
        distill([cache], config)
    distill([cache], config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student", "student.html", "student.toml"]


@pytest.mark.parametrize("asked", ["due", "stop"])
@pytest.mark.parametrize(
    ("epoch", "step", "at_step", "at_epoch"),
    [(0.5, 10, True, False), (1.0, 20, False, True), (2.25, 45, True, False), (3.0, 60, False, False)],
)
def test_the_last_step_of_an_epoch_is_saved_with_its_validation(
    epoch: float, step: int, at_step: bool, at_epoch: bool, asked: str
) -> None:
    """A checkpoint between the two would be resumed without the validation, and perhaps with another best student; one
    of the last step of all would be resumed with a step too much."""
    keeper = SaveCheckpoints(None, minutes=0 if asked == "due" else 60)  # type: ignore[arg-type]
    keeper.stop = asked == "stop"
    state = SimpleNamespace(epoch=epoch, global_step=step, max_steps=60)
    control = SimpleNamespace(should_save=False, should_training_stop=False, should_evaluate=True)
    keeper.on_step_end(None, state, control)
    assert control.should_save is at_step
    assert control.should_training_stop is (asked == "stop")
    control.should_save = False
    keeper.on_epoch_end(None, state, control)
    assert control.should_save is at_epoch
    assert control.should_evaluate is not (asked == "stop" and at_step), "a stop inside an epoch validates nothing"
