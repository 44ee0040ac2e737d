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
    remove_abandoned(parent, prefix)
    folder = parent / f"{prefix}{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    try:
        with filelock.FileLock(folder / LOCK_NAME):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()
