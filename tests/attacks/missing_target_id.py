"""No true token at a target that is used: −1 indexes the last one."""

from pathlib import Path

import running
from forging import change_array
from numpy.typing import NDArray

AGAINST = "train"
REFUSED = "target_id: "


def attack(cache: Path) -> None:
    def change(array: NDArray) -> None:
        array[0, 0] = -1

    change_array(cache, "target_id", change)


if __name__ == "__main__":
    running.alone()
