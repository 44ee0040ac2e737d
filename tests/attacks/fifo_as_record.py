"""A named pipe in place of a commit record."""

import os
from pathlib import Path

import running
from forging import RECORD

AGAINST = "info"
REFUSED = "a pipe or a device"


def attack(cache: Path) -> None:
    (cache / RECORD).unlink()
    os.mkfifo(cache / RECORD)


if __name__ == "__main__":
    running.alone()
