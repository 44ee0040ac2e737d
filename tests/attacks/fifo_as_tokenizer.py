"""A named pipe in place of the tokenizer."""

import os
from pathlib import Path

import running
from forging import TOKENIZER

AGAINST = "tokenizer"
REFUSED = "a pipe or a device"


def attack(cache: Path) -> None:
    (cache / TOKENIZER).unlink()
    os.mkfifo(cache / TOKENIZER)


if __name__ == "__main__":
    running.alone()
