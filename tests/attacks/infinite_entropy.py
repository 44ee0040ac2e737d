"""An infinite entropy."""

from pathlib import Path

import numpy as np
import running
from forging import change_array
from numpy.typing import NDArray

AGAINST = "train"
REFUSED = "entropy_seen: "


def attack(cache: Path) -> None:
    def change(array: NDArray) -> None:
        array[0, 0, 0] = np.inf

    change_array(cache, "entropy_seen", change)


if __name__ == "__main__":
    running.alone()
