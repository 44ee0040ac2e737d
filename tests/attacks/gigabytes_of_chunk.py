"""A chunk file of eight gigabytes that takes no room on the attacker's disk."""

import os
from pathlib import Path

import running
from forging import chunk_path

AGAINST = "train"
REFUSED = "larger than the 84 bytes it may have"


def attack(cache: Path) -> None:
    os.truncate(cache / chunk_path(cache, "entropy"), 2**33)


if __name__ == "__main__":
    running.alone()
