"""A chunk that Blosc decompresses by a library other than zstd."""

from pathlib import Path

import running
from forging import change_header

AGAINST = "train"
REFUSED = "train/attention: a chunk that is not zstd in Blosc as the format has it"


def attack(cache: Path) -> None:
    change_header(cache, "attention", 2, bytes([0b0010_0001]))


if __name__ == "__main__":
    running.alone()
