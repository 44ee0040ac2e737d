"""A recipe that is refused, with escape codes where the refusal quotes it."""

from pathlib import Path

import running
from forging import change_facts

AGAINST = "info"
REFUSED = "recipe field 'keep': expected topk or threshold"


def attack(cache: Path) -> None:
    change_facts(cache, lambda comet: comet["recipe"].update(keep="\x1b[2J\nsound and complete"))


if __name__ == "__main__":
    running.alone()
