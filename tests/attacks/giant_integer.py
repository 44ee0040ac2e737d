"""A whole number of 60,000 digits, which takes a parser minutes where it is quadratic."""

from pathlib import Path

import running
from forging import ARRAY, replace_text

AGAINST = "info"
REFUSED = "not a valid JSON record"


def attack(cache: Path) -> None:
    replace_text(cache, ARRAY, b"[\n    13,", b"[\n    " + b"9" * 60_000 + b",")


if __name__ == "__main__":
    running.alone()
