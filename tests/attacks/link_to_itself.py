"""A commit record that is a link to itself."""

from pathlib import Path

import running
from forging import RECORD

AGAINST = "info"
REFUSED = "a link"


def attack(cache: Path) -> None:
    (cache / RECORD).unlink()
    (cache / RECORD).symlink_to(cache / RECORD)


if __name__ == "__main__":
    running.alone()
