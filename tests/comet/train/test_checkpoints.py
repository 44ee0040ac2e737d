"""The folder of checkpoints: who may use it, and what stays in it."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
from filelock import FileLock

from cache_tools.errors import CometError
from comet.train.checkpoints import LOCK, Checkpoints, newest_checkpoint, remove_all_but_newest, seal


def write_checkpoint(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_bytes(b"1")
    seal(checkpoint)
    return checkpoint


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_in_use_is_said_to_be_in_use(tmp_path: Path, resume: bool) -> None:
    """Its checkpoints are of the training at work, not of an earlier one."""
    message = rf"^{tmp_path}/student\.checkpoints: another process is training here; choose another --output$"
    with Checkpoints(tmp_path / "student.checkpoints", {}, resume=False) as at_work:
        write_checkpoint(at_work.folder, step=1)
        for _ in range(2):
            with pytest.raises(CometError, match=message):
                Checkpoints(tmp_path / "student.checkpoints", {}, resume)


def test_what_is_refused_leaves_no_lock(tmp_path: Path) -> None:
    folder = tmp_path / "student.checkpoints"
    for _ in range(2):
        with pytest.raises(CometError, match=r"no complete checkpoint in .*; omit --resume"):
            Checkpoints(folder, {}, resume=True)
    assert not any(tmp_path.iterdir())
    with Checkpoints(folder, {"seed": 0}, resume=False) as begun:
        write_checkpoint(begun.folder, step=1)
    for resume, message in ((False, "an earlier training was not finished"), (True, "was begun differently")):
        for _ in range(2):
            with pytest.raises(CometError, match=message):
                Checkpoints(folder, {"seed": 1}, resume)
    with Checkpoints(folder, {"seed": 0}, resume=True):
        pass


@pytest.fixture
def like_nfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is removed while it is open stays under another name until it is closed."""
    unlink, release, hidden = os.unlink, FileLock.release, ".nfs0001"

    def rename_if_open(path: str | Path, *, dir_fd: int | None = None) -> None:
        if Path(path).name == LOCK:
            os.rename(path, Path(path).with_name(hidden), src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        elif Path(path).name != hidden:
            unlink(path, dir_fd=dir_fd)

    def close(lock: FileLock, force: bool = False) -> None:
        release(lock, force)
        with suppress(FileNotFoundError):  # a lock is released once more as it goes
            unlink(Path(lock.lock_file).with_name(hidden))

    monkeypatch.setattr(os, "unlink", rename_if_open)
    monkeypatch.setattr(FileLock, "release", close)


@pytest.mark.usefixtures("like_nfs")
@pytest.mark.parametrize("saved", [False, True])
def test_the_folder_goes_also_where_open_files_stay(tmp_path: Path, saved: bool) -> None:
    with Checkpoints(tmp_path / "student.checkpoints", {}, resume=False) as checkpoints:
        if saved:
            write_checkpoint(checkpoints.folder, step=1)
            (checkpoints.folder / "runs").mkdir()
            checkpoints.remove(tmp_path / "student.runs")
    assert [path.name for path in tmp_path.iterdir()] == ["student.runs"] * saved


def test_only_sealed_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        write_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-15" / "complete.json").unlink()
    (tmp_path / "checkpoint-7.bak").mkdir()
    remove_all_but_newest(tmp_path / "checkpoint-20", 2)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-10", "checkpoint-20", "checkpoint-7.bak"}


@pytest.mark.parametrize("resume", [False, True])
def test_damaged_checkpoints_of_later_steps_crowd_out_none(tmp_path: Path, resume: bool) -> None:
    """Neither when training begins anew, as it may where none is whole, nor after a resume from an earlier one."""
    with Checkpoints(tmp_path / "student.checkpoints", {}, resume=False) as checkpoints:
        folder = checkpoints.folder
        for step in (10, 30, 40):
            write_checkpoint(folder, step)
    for damaged in folder.glob("checkpoint-[34]0" if resume else "checkpoint-*"):
        (damaged / "weights").write_bytes(b"2")
    step = 20 if resume else 5
    with Checkpoints(tmp_path / "student.checkpoints", {}, resume):
        remove_all_but_newest(write_checkpoint(folder, step), 1)
        assert [path.name for path in folder.glob("checkpoint-*")] == [f"checkpoint-{step}"]
        assert newest_checkpoint(folder) == folder / f"checkpoint-{step}"
