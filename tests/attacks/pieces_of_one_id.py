"""Two pieces of one id."""

from pathlib import Path

import running
from forging import TOKENIZER, change_sealed

AGAINST = "tokenizer"
REFUSED = "tokenizer.json"


def attack(cache: Path) -> None:
    change_sealed(cache, TOKENIZER, lambda state: state["model"]["vocab"].update(new=20))


if __name__ == "__main__":
    running.alone()
