"""A regular expression that takes gigabytes to be compiled."""

from pathlib import Path

import running
from forging import TOKENIZER, change_sealed

AGAINST = "tokenizer"
REFUSED = "regular expression"


def attack(cache: Path) -> None:
    normaliser = {"type": "Replace", "pattern": {"Regex": "((((a{99}){99}){99}){99}){99}"}, "content": ""}
    change_sealed(cache, TOKENIZER, lambda state: state.update(normalizer=normaliser))


if __name__ == "__main__":
    running.alone()
