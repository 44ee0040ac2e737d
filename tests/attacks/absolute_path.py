"""A commit record that names a file of the system as an array."""

from pathlib import Path

import running
from forging import RECORD, change_record

AGAINST = "train"
REFUSED = "expected records of"


def attack(cache: Path) -> None:
    change_record(cache, RECORD, lambda record: record["files"].update({"/etc/passwd": record["files"]["length"]}))


if __name__ == "__main__":
    running.alone()
