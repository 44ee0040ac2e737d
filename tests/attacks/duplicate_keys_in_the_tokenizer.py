"""A tokenizer with two models, of which every reader takes another."""

from pathlib import Path

import running
from forging import TOKENIZER, replace_text

AGAINST = "tokenizer"
REFUSED = "a key occurs twice"


def attack(cache: Path) -> None:
    replace_text(cache, TOKENIZER, b'"version": "1.0",', b'"version": "1.0", "model": {"type": "BPE"},')


if __name__ == "__main__":
    running.alone()
