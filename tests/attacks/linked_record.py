"""A commit record that is a link."""

from pathlib import Path

import running
from forging import RECORD

AGAINST = "info"
REFUSED = "a link"


def attack(cache: Path) -> None:
    (cache / RECORD).rename(cache.parent / "elsewhere")
    (cache / RECORD).symlink_to(cache.parent / "elsewhere")


if __name__ == "__main__":
    running.alone()
