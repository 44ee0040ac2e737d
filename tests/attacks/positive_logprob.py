"""A probability of e⁵."""

from pathlib import Path

import running
from forging import change_array
from numpy.typing import NDArray

AGAINST = "train"
REFUSED = "topk_logprob: "
KEEP = "topk"


def attack(cache: Path) -> None:
    def change(array: NDArray) -> None:
        array[0, 0, 0] = 5

    change_array(cache, "topk_logprob", change)


if __name__ == "__main__":
    running.alone()
