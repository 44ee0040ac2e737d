"""Infinities in the embeddings that a student begins with."""

from pathlib import Path

import numpy as np
import running
from forging import change_vocabulary

AGAINST = "train"
REFUSED = "vocabulary/embedding: "


def attack(cache: Path) -> None:
    change_vocabulary(cache, "embedding", lambda array: array.fill(np.inf))


if __name__ == "__main__":
    running.alone()
