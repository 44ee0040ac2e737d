"""A storage transformer, looked up by its name."""

from pathlib import Path

import running
from forging import ARRAY, change_sealed

AGAINST = "train"
REFUSED = "storage_transformers: expected"


def attack(cache: Path) -> None:
    change_sealed(cache, ARRAY, lambda array: array.update(storage_transformers=[{"name": "evil"}]))


if __name__ == "__main__":
    running.alone()
