"""A disk that is full at any stage of a training: one line, nothing lost, and the same command goes on."""

from pathlib import Path

import pytest
from helpers.builds import Ended, Running
from helpers.small_disk import enlarge, small_disk
from helpers.trainings import checkpoints_of

from cache_tools import Cache

OPTIONS = ("--student", "nano", "--dtype", "float32", "--steps", "12", "--batch-size", "8", "--save-minutes", "60")
CHECKPOINTS = ("--set", "save_strategy=steps", "--set", "save_steps=4")


def run(cache: Cache, output: Path, log: Path, *options: str) -> Ended:
    arguments = ["train", "--cache", str(cache.root), "--output", str(output), *OPTIONS, *options]
    return Running(arguments, log, module="comet").wait()


@pytest.fixture(scope="module")
def whole(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The student of a training that was never disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    output = folder / "student"
    assert run(cache, output, folder / "log").code == 0
    return (output / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("students", "options", "said"),
    [
        (0.5, (), "--output: no room for a student of 1 MB in "),
        (3.6, (), "/student: cannot be written (No space left on device); make room; the trained student is kept in "),
        (4.3, (), "/student: cannot be written (No space left on device); make room; the trained student is kept in "),
        (5.0, CHECKPOINTS, "/checkpoint-4: cannot be written (No space left on device); make room"),
        (9.0, CHECKPOINTS, "/checkpoint-8: cannot be written (No space left on device); make room"),
    ],
)
def test_a_training_goes_on_after_room_was_made(
    students: float, options: tuple[str, ...], said: str, cache: Cache, whole: bytes, tmp_path: Path
) -> None:
    disk, output = tmp_path / "disk", tmp_path / "disk" / "student"
    with small_disk(disk, int(students * len(whole) / 1000)):
        first = run(cache, output, tmp_path / "first", *options)
        error = [line for line in first.stderr.splitlines() if line.startswith("error: ")]
        assert first.code in (1, 2) and len(error) == 1 and said in error[0], first
        assert {path.name for path in disk.iterdir()} <= {"student.checkpoints"}
        assert not (disk / "student.checkpoints" / "room").exists()
        enlarge(disk)
        resume = ["--resume"] if checkpoints_of(output) else []
        second = run(cache, output, tmp_path / "second", *options, *resume)
        assert second.code == 0, second
        assert (output / "model.safetensors").read_bytes() == whole
        assert {path.name for path in disk.iterdir()} == {"student", "student.html", "student.toml"}
