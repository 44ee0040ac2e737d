"""A tokenizer of which half is not there."""

from pathlib import Path

import running
from forging import TOKENIZER, change_sealed

AGAINST = "tokenizer"
REFUSED = "tokenizer.json"


def attack(cache: Path) -> None:
    change_sealed(cache, TOKENIZER, lambda state: state.pop("model"))


if __name__ == "__main__":
    running.alone()
