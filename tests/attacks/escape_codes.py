"""Provenance that clears the screen, renames the window and writes what it likes."""

from pathlib import Path

import running
from forging import change_facts

AGAINST = "info"
SHOWN = "\\x1b[2J\\x1b]0;owned\\x07sound"


def attack(cache: Path) -> None:
    change_facts(cache, lambda comet: comet["provenance"].update(teacher="\x1b[2J\x1b]0;owned\x07sound"))


if __name__ == "__main__":
    running.alone()
