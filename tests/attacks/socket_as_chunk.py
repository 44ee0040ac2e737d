"""A socket in place of a chunk."""

import os
import socket
from pathlib import Path

import running
from forging import chunk_path

AGAINST = "train"
REFUSED = "cannot be read"


def attack(cache: Path) -> None:
    file = cache / chunk_path(cache, "entropy")
    file.unlink()
    os.chdir(file.parent)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(file.name)


if __name__ == "__main__":
    running.alone()
