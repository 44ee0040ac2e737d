"""A tokenizer that is a link to a file of the user."""

from pathlib import Path

import running
from forging import TOKENIZER

AGAINST = "tokenizer"
REFUSED = "a link"


def attack(cache: Path) -> None:
    (cache / TOKENIZER).rename(cache.parent / "elsewhere")
    (cache / TOKENIZER).symlink_to(cache.parent / "elsewhere")


if __name__ == "__main__":
    running.alone()
