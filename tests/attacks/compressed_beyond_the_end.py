"""A chunk whose compressed part is said to go on beyond its end, into memory that is not its own."""

from pathlib import Path

import running
from forging import change_header

AGAINST = "train"
REFUSED = "a chunk declares 1073741824 compressed bytes"


def attack(cache: Path) -> None:
    change_header(cache, "entropy", 12, (2**30).to_bytes(4, "little"))


if __name__ == "__main__":
    running.alone()
