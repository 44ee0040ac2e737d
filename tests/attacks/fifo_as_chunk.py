"""A named pipe in place of a chunk: who opens it waits for ever."""

import os
from pathlib import Path

import running
from forging import chunk_path

AGAINST = "train"
REFUSED = "a pipe or a device"


def attack(cache: Path) -> None:
    file = cache / chunk_path(cache, "entropy")
    file.unlink()
    os.mkfifo(file)


if __name__ == "__main__":
    running.alone()
