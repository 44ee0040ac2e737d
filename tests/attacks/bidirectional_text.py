"""Provenance that turns the direction of the text around, so that a line reads otherwise."""

from pathlib import Path

import running
from forging import change_facts

AGAINST = "info"
SHOWN = "Kinya\\u202edrawn\\u2066 (kin)"


def attack(cache: Path) -> None:
    change_facts(cache, lambda comet: comet["provenance"].update(language_name="Kinya\u202edrawn\u2066"))


if __name__ == "__main__":
    running.alone()
