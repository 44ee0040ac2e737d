"""Special tokens that are objects and lists."""

from pathlib import Path

import running
from forging import TOKENIZER_CONFIG, change_sealed

AGAINST = "tokenizer"
REFUSED = "mask_token"


def attack(cache: Path) -> None:
    change_sealed(
        cache, TOKENIZER_CONFIG, lambda config: config.update(mask_token={"__type": "AddedToken", "content": [1]})
    )


if __name__ == "__main__":
    running.alone()
