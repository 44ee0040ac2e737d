"""A record that is the device /dev/zero, which never ends."""

from pathlib import Path

import running
from forging import RECORD

AGAINST = "info"
REFUSED = "a link"


def attack(cache: Path) -> None:
    (cache / RECORD).unlink()
    (cache / RECORD).symlink_to("/dev/zero")


if __name__ == "__main__":
    running.alone()
