"""Another seed in the recipe, everything signed again: masks that are not the seed's."""

from pathlib import Path

import running
from forging import change_recipe

AGAINST = "verify --deep"
REFUSED = "not what the masking of view 0 gives"


def attack(cache: Path) -> None:
    change_recipe(cache, seed=1)


if __name__ == "__main__":
    running.alone()
