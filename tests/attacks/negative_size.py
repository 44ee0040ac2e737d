"""A file of minus one byte."""

from pathlib import Path

import running
from forging import RECORD, change_record

AGAINST = "info"
REFUSED = "entropy: expected a size up to"


def attack(cache: Path) -> None:
    change_record(cache, RECORD, lambda record: record["files"]["entropy"].update(bytes=-1))


if __name__ == "__main__":
    running.alone()
