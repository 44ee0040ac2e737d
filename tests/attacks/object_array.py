"""An array of Python objects."""

from pathlib import Path

import running
from forging import ARRAY, change_sealed

AGAINST = "train"
REFUSED = "data_type: expected float32, found object"


def attack(cache: Path) -> None:
    change_sealed(cache, ARRAY, lambda array: array.update(data_type="object", fill_value=None))


if __name__ == "__main__":
    running.alone()
