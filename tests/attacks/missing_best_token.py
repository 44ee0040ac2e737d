"""No token where the teacher's best belongs."""

from pathlib import Path

import running
from forging import change_array
from numpy.typing import NDArray

AGAINST = "train"
REFUSED = "topk_id: "
KEEP = "topk"


def attack(cache: Path) -> None:
    def change(array: NDArray) -> None:
        array[0, 0, 0] = -1

    change_array(cache, "topk_id", change)


if __name__ == "__main__":
    running.alone()
