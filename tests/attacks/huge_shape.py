"""An array that is declared 2⁶⁰ rows long, so that a reader makes room for them."""

from pathlib import Path

import running
from forging import ARRAY, change_sealed

AGAINST = "train"
REFUSED = "shape: expected [13, 2, 2], found [1152921504606846976, 2, 2]"


def attack(cache: Path) -> None:
    change_sealed(cache, ARRAY, lambda array: array.update(shape=[2**60, 2, 2]))


if __name__ == "__main__":
    running.alone()
