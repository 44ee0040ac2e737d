"""A row of no tokens, over which a mean is none."""

from pathlib import Path

import running
from forging import change_array
from numpy.typing import NDArray

AGAINST = "train"
REFUSED = "length: a value lies outside 1 to 16"


def attack(cache: Path) -> None:
    def change(array: NDArray) -> None:
        array[0] = 0

    change_array(cache, "length", change)


if __name__ == "__main__":
    running.alone()
