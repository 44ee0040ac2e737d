"""A file whose name has a line of its own that says that all is well."""

from pathlib import Path

import running

AGAINST = "verify --deep"
REFUSED = "unknown file"


def attack(cache: Path) -> None:
    (cache / "x\nsound and complete\n").touch()


if __name__ == "__main__":
    running.alone()
