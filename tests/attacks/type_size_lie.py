"""A chunk of another item size, which shuffles its bytes into other numbers."""

from pathlib import Path

import running
from forging import change_header

AGAINST = "train"
REFUSED = "train/sample_id: a chunk that is not zstd in Blosc as the format has it"


def attack(cache: Path) -> None:
    change_header(cache, "sample_id", 3, b"\x02")


if __name__ == "__main__":
    running.alone()
