"""A target behind the end of its row."""

from pathlib import Path

import running
from forging import change_array
from numpy.typing import NDArray

AGAINST = "train"
REFUSED = "target_position: a target lies in the padding"


def attack(cache: Path) -> None:
    def change(array: NDArray) -> None:
        array[0, 1] = 16

    change_array(cache, "target_position", change)


if __name__ == "__main__":
    running.alone()
