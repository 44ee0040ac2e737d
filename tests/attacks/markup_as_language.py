"""A language that puts fields of its own into the header of a student's card."""

from pathlib import Path

import running
from forging import change_facts

AGAINST = "info"
REFUSED = "provenance: language: expected a code of two or three letters"


def attack(cache: Path) -> None:
    change_facts(cache, lambda comet: comet["provenance"].update(language="kin]\nlicense: [mit"))


if __name__ == "__main__":
    running.alone()
