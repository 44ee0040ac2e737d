"""A negative token in a row, which indexes from the end."""

from pathlib import Path

import running
from forging import change_array
from numpy.typing import NDArray

AGAINST = "train"
REFUSED = "input_ids: a value lies outside 0 to 59"


def attack(cache: Path) -> None:
    def change(array: NDArray) -> None:
        array[0, 0] = -7

    change_array(cache, "input_ids", change)


if __name__ == "__main__":
    running.alone()
