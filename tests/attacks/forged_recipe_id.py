"""A recipe id that is not the one of the recipe, by which two caches would be taken for one."""

from pathlib import Path

import running
from forging import change_facts

AGAINST = "info"
REFUSED = "recipe_id: expected"


def attack(cache: Path) -> None:
    change_facts(cache, lambda comet: comet.update(recipe_id="0" * 64))


if __name__ == "__main__":
    running.alone()
