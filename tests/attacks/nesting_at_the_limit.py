"""Lists in lists, as deep as a parser takes them, to overflow the stack of whoever shows or writes them."""

from pathlib import Path

import running
from forging import ARRAY, change_sealed

AGAINST = "info"
REFUSED = "nested deeper than"


def attack(cache: Path) -> None:
    deep: object = 0
    for _ in range(700):
        deep = [deep]
    change_sealed(cache, ARRAY, lambda array: array.update(fill_value=deep))


if __name__ == "__main__":
    running.alone()
