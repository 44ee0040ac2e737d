"""A truth value where the recipe has a whole number; Python counts with it."""

from pathlib import Path

import running
from forging import change_recipe

AGAINST = "info"
REFUSED = "recipe field 'views': expected a whole number"


def attack(cache: Path) -> None:
    change_recipe(cache, views=True)


if __name__ == "__main__":
    running.alone()
