"""A template that puts twenty thousand special tokens around every text."""

from pathlib import Path
from typing import Any

import running
from forging import TOKENIZER, change_sealed

AGAINST = "tokenizer"
REFUSED = "tokenizer.json"


def attack(cache: Path) -> None:
    def grow(state: dict[str, Any]) -> None:
        single = state["post_processor"]["single"]
        state["post_processor"]["single"] = single + single[:1] * 20_000

    change_sealed(cache, TOKENIZER, grow)


if __name__ == "__main__":
    running.alone()
