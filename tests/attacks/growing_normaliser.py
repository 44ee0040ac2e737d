"""Replacements that each make a text a thousand times longer."""

from pathlib import Path

import running
from forging import TOKENIZER, change_sealed

AGAINST = "tokenizer"
REFUSED = "tokenizer.json"


def attack(cache: Path) -> None:
    grow = {"type": "Replace", "pattern": {"String": "i"}, "content": "i" * 1000}
    change_sealed(
        cache, TOKENIZER, lambda state: state.update(normalizer={"type": "Sequence", "normalizers": [grow] * 5})
    )


if __name__ == "__main__":
    running.alone()
