"""Escape codes in the name of the teacher's architecture."""

from pathlib import Path

import running
from forging import change_recipe

AGAINST = "info"
REFUSED = "recipe field 'teacher_architecture'"


def attack(cache: Path) -> None:
    change_recipe(cache, teacher_architecture="\x1b[2JBert")


if __name__ == "__main__":
    running.alone()
