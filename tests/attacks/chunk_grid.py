"""Chunks of one row, so that there are more of them than the ledger knows."""

from pathlib import Path

import running
from forging import ARRAY, change_sealed

AGAINST = "train"
REFUSED = "chunk_grid: expected"


def attack(cache: Path) -> None:
    change_sealed(cache, ARRAY, lambda array: array["chunk_grid"]["configuration"].update(chunk_shape=[1, 2, 2]))


if __name__ == "__main__":
    running.alone()
