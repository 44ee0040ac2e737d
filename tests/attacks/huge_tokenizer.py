"""A tokenizer of 200 MB."""

from pathlib import Path

import running
from forging import TOKENIZER, write_sealed

AGAINST = "tokenizer"
REFUSED = "expected a size up to"


def attack(cache: Path) -> None:
    write_sealed(cache, TOKENIZER, (cache / TOKENIZER).read_bytes() + b" " * 200_000_000)


if __name__ == "__main__":
    running.alone()
