"""An added token beyond the vocabulary."""

from pathlib import Path

import running
from forging import TOKENIZER, change_sealed

AGAINST = "tokenizer"
REFUSED = "60"


def attack(cache: Path) -> None:
    token = {
        "content": "new",
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    change_sealed(cache, TOKENIZER, lambda state: state["added_tokens"].append(token | {"id": 2**32 - 1}))


if __name__ == "__main__":
    running.alone()
