"""A process that dies before any one of its file operations, simulated in this process."""

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHANGING = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink", "shutil.rmtree"}


class Crash(BaseException):
    """No `except Exception` may survive it, as none survives SIGKILL."""


@dataclass
class Watch:
    """File operations under a folder, counted; from number `crash_at` on all of them raise Crash."""

    folder: str
    crash_at: int | None
    operations: int = 0
    last_opened: Path | None = None
    crashed: bool = False
    seed: int = 0
    log: list[str] = field(default_factory=list)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        opened = event == "open" and is_writing(arguments)
        if not (opened or event in CHANGING) or not str(arguments[0]).startswith(self.folder):
            return
        if self.crash_at is not None and self.operations >= self.crash_at:
            self.crashed = True
            raise Crash(f"{event} {arguments[0]}")
        self.operations += 1
        if opened:
            self.last_opened = Path(arguments[0])

    def tear(self) -> None:
        """What was written last, and not renamed since, need not be on the disk as a whole."""
        if self.last_opened is not None and self.last_opened.is_file():
            size = self.last_opened.stat().st_size
            os.truncate(self.last_opened, random.Random(self.seed).randint(0, size))


def is_writing(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    return any(letter in str(mode) for letter in "wxa+") if mode else bool(flags & (os.O_WRONLY | os.O_RDWR))


watched: list[Watch] = []


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    if watched:
        watched[-1](event, arguments)


sys.addaudithook(hook)  # for the rest of the process: Python has no way to remove one


@contextmanager
def crashing(folder: Path, at: int | None) -> Iterator[Watch]:
    """Runs the block until its `at`-th operation that changes a file under the folder, counted from 0, and not
    further: neither that one nor any clean-up reaches the disk. None: to its end, counting."""
    watch = Watch(str(folder), at, seed=at or 0)
    watched.append(watch)
    try:
        yield watch
    except BaseException:
        if not watch.crashed:
            raise
    finally:
        watched.remove(watch)
        if watch.crashed:
            watch.tear()
