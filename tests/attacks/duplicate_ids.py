"""One token twice in a sample, so that it counts twice."""

from pathlib import Path

import running
from forging import change_array
from numpy.typing import NDArray

AGAINST = "train"
REFUSED = "sample_id: "


def attack(cache: Path) -> None:
    def change(array: NDArray) -> None:
        array[0, 0, 0, 1] = array[0, 0, 0, 0]

    change_array(cache, "sample_id", change)


if __name__ == "__main__":
    running.alone()
