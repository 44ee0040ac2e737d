"""The record of one shard under the name of another."""

import shutil
from pathlib import Path

import running
from forging import RECORD

AGAINST = "train"
REFUSED = "shard: expected 0, found '1'"


def attack(cache: Path) -> None:
    shutil.copy(cache / "ledger/train-00001.json", cache / RECORD)


if __name__ == "__main__":
    running.alone()
