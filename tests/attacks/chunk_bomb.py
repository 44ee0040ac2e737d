"""A chunk that says it becomes two gigabytes."""

from pathlib import Path

import running
from forging import change_header

AGAINST = "train"
REFUSED = "a chunk declares 2147483647 bytes, expected 64"


def attack(cache: Path) -> None:
    change_header(cache, "entropy", 4, (2**31 - 1).to_bytes(4, "little"))


if __name__ == "__main__":
    running.alone()
