"""A chunk of blocks of one byte, each with an offset of its own."""

from pathlib import Path

import running
from forging import change_header

AGAINST = "train"
REFUSED = "train/attention: a chunk that is not zstd in Blosc as the format has it"


def attack(cache: Path) -> None:
    change_header(cache, "attention", 8, (1).to_bytes(4, "little"))


if __name__ == "__main__":
    running.alone()
