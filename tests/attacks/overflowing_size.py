"""A file of 2⁶⁴ + 84 bytes, which is 84 in a machine word."""

from pathlib import Path

import running
from forging import RECORD, change_record

AGAINST = "info"
REFUSED = "entropy: expected a size up to"


def attack(cache: Path) -> None:
    change_record(cache, RECORD, lambda record: record["files"]["entropy"].update(bytes=2**64 + 84))


if __name__ == "__main__":
    running.alone()
