"""A second object after a record."""

from pathlib import Path

import running
from forging import RECORD

AGAINST = "info"
REFUSED = "not a valid JSON record"


def attack(cache: Path) -> None:
    with (cache / RECORD).open("ab") as file:
        file.write(b'{"shard":0}\n')


if __name__ == "__main__":
    running.alone()
