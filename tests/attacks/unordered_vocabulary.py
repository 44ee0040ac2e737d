"""Ids of the vocabulary out of order, among them one beyond the end."""

from pathlib import Path

import running
from forging import change_vocabulary

AGAINST = "train"
REFUSED = "vocabulary/id: expected ascending ids below 60"


def attack(cache: Path) -> None:
    change_vocabulary(cache, "id", lambda array: array.__setitem__(3, 2**30))


if __name__ == "__main__":
    running.alone()
