"""A tokenizer class outside of transformers, looked up by its name."""

from pathlib import Path

import running
from forging import TOKENIZER_CONFIG, change_sealed

AGAINST = "tokenizer"
REFUSED = "tokenizer_class"


def attack(cache: Path) -> None:
    change_sealed(cache, TOKENIZER_CONFIG, lambda config: config.update(tokenizer_class="evil.module.Tokenizer"))


if __name__ == "__main__":
    running.alone()
