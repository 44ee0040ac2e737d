"""Tokens that occur less than never."""

from pathlib import Path

import running
from forging import change_vocabulary

AGAINST = "train"
REFUSED = "vocabulary/count: "


def attack(cache: Path) -> None:
    change_vocabulary(cache, "count", lambda array: array.fill(-(2**62)))


if __name__ == "__main__":
    running.alone()
