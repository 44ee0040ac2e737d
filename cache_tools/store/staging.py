"""Locks between processes: of a cache, and of temporary folders while their owner is alive.

Unlike those of tempfile, such folders are also removed after a kill.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from cache_tools.store.ledger import LOCK

LOCK_NAME = "lock"
STAGING = ".staging-"  # prefix of the folders in a cache for files on their way into it
POLL_SECONDS = 0.005  # of waiting for a cache's lock, which is mostly held for milliseconds


@contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Keep other builds, copies and transfers from committing to a cache while the block runs.

    Raises OSError if the disk refuses.
    """
    (root / LOCK).parent.mkdir(exist_ok=True)
    lock = filelock.FileLock(root / LOCK)
    lock.acquire(poll_interval=POLL_SECONDS)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def claimed_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a new folder `parent/prefix…` and remove it at the end; first remove the folders of dead owners."""
    remove_abandoned(parent, prefix)
    while (claim := _try_to_claim(parent / f"{prefix}{uuid.uuid4().hex}")) is None:
        pass
    folder, lock = claim
    try:
        yield folder
    finally:
        _give_up(folder, lock)


def _try_to_claim(folder: Path) -> tuple[Path, filelock.BaseFileLock] | None:
    """Make and lock a folder; return None if another process took it for abandoned just before it was locked."""
    folder.mkdir(parents=True)
    lock = filelock.FileLock(folder / LOCK_NAME)
    try:
        lock.acquire()
    except (FileNotFoundError, FileExistsError):  # the second if it goes while the lock makes sure of its folder
        return None
    if (folder / LOCK_NAME).exists():
        return folder, lock
    lock.release()
    return None


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove the folders `parent/prefix…` whose owner is dead."""
    for folder in parent.iterdir() if parent.is_dir() else ():
        if not folder.name.startswith(prefix):
            continue
        lock = filelock.FileLock(folder / LOCK_NAME)
        try:
            lock.acquire(blocking=False)
        except (filelock.Timeout, OSError):
            continue  # its owner is alive, or just removing it
        _give_up(folder, lock)


def _give_up(folder: Path, lock: filelock.BaseFileLock) -> None:
    """Remove a folder and release its lock."""
    shutil.rmtree(folder, ignore_errors=True)
    lock.release()
    if os.name == "nt":  # which removes no open file, as the lock was
        shutil.rmtree(folder, ignore_errors=True)
