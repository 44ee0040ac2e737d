"""Provenance of half a megabyte in one line."""

from pathlib import Path

import running
from forging import change_facts

AGAINST = "info"
SHOWN = "teacher            aaaaaaaa"


def attack(cache: Path) -> None:
    change_facts(cache, lambda comet: comet["provenance"].update(teacher="a" * 500_000))


if __name__ == "__main__":
    running.alone()
