"""A chunk of blocks of no bytes, by which Blosc divides."""

from pathlib import Path

import running
from forging import change_header

AGAINST = "train"
REFUSED = "train/attention: a chunk that is not zstd in Blosc as the format has it"


def attack(cache: Path) -> None:
    change_header(cache, "attention", 8, bytes(4))


if __name__ == "__main__":
    running.alone()
