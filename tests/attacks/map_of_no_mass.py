"""A map of zeros, which no row of attention can be."""

from pathlib import Path

import running
from forging import change_array
from numpy.typing import NDArray

AGAINST = "verify --deep"
REFUSED = "rows of a map to sum to 1"


def attack(cache: Path) -> None:
    def change(array: NDArray) -> None:
        array[0] = 0

    change_array(cache, "attention", change)


if __name__ == "__main__":
    running.alone()
