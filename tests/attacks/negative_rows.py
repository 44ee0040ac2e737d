"""A recipe of fewer than no rows."""

from pathlib import Path

import running
from forging import change_recipe

AGAINST = "info"
REFUSED = "recipe field 'train_rows': expected a whole number from 1 to"


def attack(cache: Path) -> None:
    change_recipe(cache, train_rows=-(2**40))


if __name__ == "__main__":
    running.alone()
