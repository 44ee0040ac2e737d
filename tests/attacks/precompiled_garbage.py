"""A table of a normaliser that is shorter than it says, over which its reader stumbles."""

from pathlib import Path

import running
from forging import TOKENIZER, change_sealed

AGAINST = "tokenizer"
REFUSED = "tokenizer.json"


def attack(cache: Path) -> None:
    normaliser = {"type": "Precompiled", "precompiled_charsmap": "/////w=="}
    change_sealed(cache, TOKENIZER, lambda state: state.update(normalizer=normaliser))


if __name__ == "__main__":
    running.alone()
