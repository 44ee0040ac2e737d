"""Chunks under other names, which the ledger does not list."""

from pathlib import Path

import running
from forging import ARRAY, change_sealed

AGAINST = "train"
REFUSED = "chunk_key_encoding: expected"


def attack(cache: Path) -> None:
    change_sealed(
        cache, ARRAY, lambda array: array.update(chunk_key_encoding={"name": "v2", "configuration": {"separator": "."}})
    )


if __name__ == "__main__":
    running.alone()
