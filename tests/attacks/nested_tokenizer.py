"""Normalisers within normalisers, twenty thousand deep."""

from pathlib import Path

import running
from forging import TOKENIZER, write_sealed

AGAINST = "tokenizer"
REFUSED = "tokenizer.json"


def attack(cache: Path) -> None:
    deep = b'{"type": "Sequence", "normalizers": [' * 20_000 + b"]}" * 20_000
    write_sealed(cache, TOKENIZER, b'{"normalizer": ' + deep + b"}")


if __name__ == "__main__":
    running.alone()
