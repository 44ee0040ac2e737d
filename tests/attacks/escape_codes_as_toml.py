"""The same in the options that `info --toml` prints, with an option of its own."""

from pathlib import Path

import running
from forging import change_facts

AGAINST = "info --toml"
SHOWN = 'teacher = "'


def attack(cache: Path) -> None:
    change_facts(cache, lambda comet: comet["provenance"].update(teacher='"\npush-to = "/tmp\x1b[2J'))


if __name__ == "__main__":
    running.alone()
