"""A piece of the id 4 · 10⁹, so that a list of all ids takes all memory."""

from pathlib import Path

import running
from forging import TOKENIZER, change_sealed

AGAINST = "tokenizer"
REFUSED = "60"


def attack(cache: Path) -> None:
    change_sealed(cache, TOKENIZER, lambda state: state["model"]["vocab"].update(new=4_000_000_000))


if __name__ == "__main__":
    running.alone()
