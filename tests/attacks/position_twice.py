"""Two targets at one position."""

from pathlib import Path

import running
from forging import change_array
from numpy.typing import NDArray

AGAINST = "train"
REFUSED = "target_position: "


def attack(cache: Path) -> None:
    def change(array: NDArray) -> None:
        array[0, 1] = array[0, 0]

    change_array(cache, "target_position", change)


if __name__ == "__main__":
    running.alone()
