"""A folder in place of a chunk."""

from pathlib import Path

import running
from forging import chunk_path

AGAINST = "train"
REFUSED = "Is a directory"


def attack(cache: Path) -> None:
    file = cache / chunk_path(cache, "entropy")
    file.unlink()
    file.mkdir()


if __name__ == "__main__":
    running.alone()
