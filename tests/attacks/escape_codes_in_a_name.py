"""A file whose name drives the terminal that `verify` prints it on."""

from pathlib import Path

import running

AGAINST = "verify --deep"
REFUSED = "unknown file"


def attack(cache: Path) -> None:
    (cache / "\x1b]0;owned\x07\x1b[2J").touch()


if __name__ == "__main__":
    running.alone()
