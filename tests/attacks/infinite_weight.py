"""A token of the sample that stands for infinitely much, which makes every loss infinite."""

from pathlib import Path

import numpy as np
import running
from forging import change_array
from numpy.typing import NDArray

AGAINST = "train"
REFUSED = "sample_logweight: "


def attack(cache: Path) -> None:
    def change(array: NDArray) -> None:
        array[0, 0, 0, 0] = np.inf

    change_array(cache, "sample_logweight", change)


if __name__ == "__main__":
    running.alone()
