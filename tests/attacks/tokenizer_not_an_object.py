"""A tokenizer that is a list."""

from pathlib import Path

import running
from forging import TOKENIZER, write_sealed

AGAINST = "tokenizer"
REFUSED = "expected a JSON object"


def attack(cache: Path) -> None:
    write_sealed(cache, TOKENIZER, b"[]")


if __name__ == "__main__":
    running.alone()
