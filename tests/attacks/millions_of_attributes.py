"""Two million attributes on an array."""

from pathlib import Path

import running
from forging import ARRAY, change_sealed

AGAINST = "info"
REFUSED = "a size up to 65536"


def attack(cache: Path) -> None:
    change_sealed(cache, ARRAY, lambda array: array.update(attributes={str(n): n for n in range(2_000_000)}))


if __name__ == "__main__":
    running.alone()
