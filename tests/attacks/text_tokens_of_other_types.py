"""Counts in the provenance that cannot be counted with."""

from pathlib import Path

import running
from forging import change_facts

AGAINST = "info"
REFUSED = "text_tokens"


def attack(cache: Path) -> None:
    change_facts(cache, lambda comet: comet["provenance"].update(text_tokens=[1]))


if __name__ == "__main__":
    running.alone()
