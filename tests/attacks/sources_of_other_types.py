"""Sources in the provenance that are no objects."""

from pathlib import Path

import running
from forging import change_facts

AGAINST = "info --toml"
REFUSED = "provenance"


def attack(cache: Path) -> None:
    change_facts(cache, lambda comet: comet["provenance"].update(text=[["name", 1]]))


if __name__ == "__main__":
    running.alone()
