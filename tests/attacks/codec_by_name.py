"""A codec of its own, looked up by its name among installed packages."""

from pathlib import Path

import running
from forging import ARRAY, change_sealed

AGAINST = "train"
REFUSED = "codecs: expected"


def attack(cache: Path) -> None:
    change_sealed(cache, ARRAY, lambda array: array["codecs"].append({"name": "evil.codec"}))


if __name__ == "__main__":
    running.alone()
