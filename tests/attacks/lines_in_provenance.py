"""Provenance with a line of its own, which claims a state."""

from pathlib import Path

import running
from forging import change_facts

AGAINST = "info"
SHOWN = "kin\\n  cache id  forged\\r (kin)"


def attack(cache: Path) -> None:
    change_facts(cache, lambda comet: comet["provenance"].update(language_name="kin\n  cache id  forged\r"))


if __name__ == "__main__":
    running.alone()
