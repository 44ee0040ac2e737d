"""Escape codes in the name of a field that does not belong."""

from pathlib import Path

import running
from forging import change_facts

AGAINST = "info"
REFUSED = "recipe fields missing or unknown"


def attack(cache: Path) -> None:
    change_facts(cache, lambda comet: comet["recipe"].update({"\x1b[2J": 1}))


if __name__ == "__main__":
    running.alone()
