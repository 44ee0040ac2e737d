"""A bias that is no number in the vocabulary."""

from pathlib import Path

import numpy as np
import running
from forging import change_vocabulary

AGAINST = "train"
REFUSED = "vocabulary/head_bias: "


def attack(cache: Path) -> None:
    change_vocabulary(cache, "head_bias", lambda array: array.fill(np.nan))


if __name__ == "__main__":
    running.alone()
