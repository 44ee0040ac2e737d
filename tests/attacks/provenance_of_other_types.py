"""Provenance whose texts are numbers, and whose lists are texts."""

from pathlib import Path

import running
from forging import change_facts

AGAINST = "info"
REFUSED = "provenance"


def attack(cache: Path) -> None:
    change_facts(cache, lambda comet: comet["provenance"].update(text=7, excluded="abc"))


if __name__ == "__main__":
    running.alone()
