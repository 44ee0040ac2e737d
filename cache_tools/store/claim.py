"""Working folders that say whether their owner is alive, so that what a killed process left can be removed."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

LOCK_NAME = "lock"


@contextmanager
def claimed_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder `parent/prefix…` that is removed at the end; folders of dead owners are removed first.

    An owner is alive while it holds the file lock in its folder.
    """
    for left in parent.glob(f"{prefix}*"):
        remove_if_abandoned(left)
    folder = parent / f"{prefix}{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    try:
        with filelock.FileLock(folder / LOCK_NAME):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_if_abandoned(folder: Path) -> None:
    lock = filelock.FileLock(folder / LOCK_NAME)
    try:
        lock.acquire(blocking=False)
    except (filelock.Timeout, OSError):
        return  # a live owner's, or one that is just going
    shutil.rmtree(folder, ignore_errors=True)
    lock.release()
