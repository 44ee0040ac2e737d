"""An entropy that is no number."""

from pathlib import Path

import numpy as np
import running
from forging import change_array
from numpy.typing import NDArray

AGAINST = "train"
REFUSED = "entropy: "


def attack(cache: Path) -> None:
    def change(array: NDArray) -> None:
        array[0, 0, 0] = np.nan

    change_array(cache, "entropy", change)


if __name__ == "__main__":
    running.alone()
