"""A token that the vocabulary does not have."""

from pathlib import Path

import running
from forging import change_array
from numpy.typing import NDArray

AGAINST = "train"
REFUSED = "sample_id: a value lies outside -1 to 59"


def attack(cache: Path) -> None:
    def change(array: NDArray) -> None:
        array[0, 0, 0, 0] = 60

    change_array(cache, "sample_id", change)


if __name__ == "__main__":
    running.alone()
