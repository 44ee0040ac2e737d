"""A commit record that is larger than a record may be."""

from pathlib import Path

import running
from forging import RECORD, change_record

AGAINST = "info"
REFUSED = "larger than the 4194304 bytes it may have"


def attack(cache: Path) -> None:
    change_record(cache, RECORD, lambda record: record.update(numerics={"device": "x" * 2**22}))


if __name__ == "__main__":
    running.alone()
