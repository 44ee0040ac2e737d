"""A sound tokenizer of other pieces, signed."""

from pathlib import Path
from typing import Any

import running
from forging import TOKENIZER, change_sealed

AGAINST = "verify --deep"
REFUSED = "tokenizer sha256: expected"


def attack(cache: Path) -> None:
    def exchange(state: dict[str, Any]) -> None:
        vocabulary = state["model"]["vocab"]
        one, other = list(vocabulary)[20:22]
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]

    change_sealed(cache, TOKENIZER, exchange)


if __name__ == "__main__":
    running.alone()
