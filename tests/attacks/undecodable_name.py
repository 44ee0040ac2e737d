"""A file whose name is no UTF-8."""

import os
from pathlib import Path

import running

AGAINST = "verify --deep"
REFUSED = "unknown file"


def attack(cache: Path) -> None:
    os.close(os.open(os.fsencode(cache) + b"/\xff\xfe", os.O_CREAT))


if __name__ == "__main__":
    running.alone()
