"""A text's name that is a command of a shell, in the call that the cache asks a person to copy."""

from pathlib import Path

import running
from forging import change_detached, change_facts

AGAINST = "train"
REFUSED = "--text '$(rm -rf ~); x'"


def attack(cache: Path) -> None:
    change_facts(cache, lambda comet: comet["provenance"].update(text=[{"name": "$(rm -rf ~); x"}]))
    change_detached(cache)


if __name__ == "__main__":
    running.alone()
