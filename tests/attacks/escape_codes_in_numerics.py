"""Escape codes in what a shard was computed on."""

from pathlib import Path

import running
from forging import RECORD, change_record

AGAINST = "info"
REFUSED = "expected numerics as short texts"


def attack(cache: Path) -> None:
    change_record(cache, RECORD, lambda record: record["numerics"].update(device="\x1b[2J"))


if __name__ == "__main__":
    running.alone()
