"""A tokenizer of more pieces than the vocabulary, whose ids a student has no row for."""

from pathlib import Path

import running
from forging import TOKENIZER, change_sealed

AGAINST = "tokenizer"
REFUSED = "60"


def attack(cache: Path) -> None:
    change_sealed(cache, TOKENIZER, lambda state: state["model"]["vocab"].update({f"new{n}": 60 + n for n in range(9)}))


if __name__ == "__main__":
    running.alone()
