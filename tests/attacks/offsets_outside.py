"""A chunk whose blocks begin outside of it."""

from pathlib import Path

import running
from forging import change_header

AGAINST = "train"
REFUSED = "train/attention: a chunk cannot be decompressed"


def attack(cache: Path) -> None:
    change_header(cache, "attention", 16, (2**31 - 16).to_bytes(4, "little"))


if __name__ == "__main__":
    running.alone()
