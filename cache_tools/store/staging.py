"""Working folders that say whether their owner is alive, so that what a killed process left can be removed."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

LOCK_NAME = "lock"
STAGING = ".staging-"  # how folders in a cache begin that hold files on their way into it


@contextmanager
def claimed_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder `parent/prefix…` that is removed at the end; folders of dead owners are removed first.

    An owner is alive while it holds the file lock in its folder.
    """
    remove_abandoned(parent, prefix)
    while (claim := try_to_claim(parent / f"{prefix}{uuid.uuid4().hex}")) is None:
        pass
    folder, lock = claim
    try:
        yield folder
    finally:
        give_up(folder, lock)


def try_to_claim(folder: Path) -> tuple[Path, filelock.BaseFileLock] | None:
    """Makes and locks a folder; None if somebody took it for abandoned in the instant before it was locked."""
    folder.mkdir(parents=True)
    lock = filelock.FileLock(folder / LOCK_NAME)
    try:
        lock.acquire()
    except FileNotFoundError:
        return None
    if (folder / LOCK_NAME).exists():
        return folder, lock
    lock.release()
    return None


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Removes the folders `parent/prefix…` whose owner is dead."""
    for folder in parent.iterdir() if parent.is_dir() else ():
        if not folder.name.startswith(prefix):
            continue
        lock = filelock.FileLock(folder / LOCK_NAME)
        try:
            lock.acquire(blocking=False)
        except (filelock.Timeout, OSError):
            continue  # a live owner's, or one that is just going
        give_up(folder, lock)


def give_up(folder: Path, lock: filelock.BaseFileLock) -> None:
    """Removes a folder and lets go of its lock."""
    shutil.rmtree(folder, ignore_errors=True)
    lock.release()
    if os.name == "nt":  # where no file is removed that is open, as the lock was
        shutil.rmtree(folder, ignore_errors=True)
