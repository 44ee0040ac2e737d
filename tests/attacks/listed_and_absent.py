"""A ledger that lists a shard whose files are not there."""

import shutil
from pathlib import Path

import running

AGAINST = "train"
REFUSED = "cannot be read"


def attack(cache: Path) -> None:
    shutil.rmtree(cache / "train/entropy/c/2")


if __name__ == "__main__":
    running.alone()
