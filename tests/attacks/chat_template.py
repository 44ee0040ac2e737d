"""A template, which is a program, in a tokenizer that no chat needs."""

from pathlib import Path

import running
from forging import TOKENIZER_CONFIG, change_sealed

AGAINST = "tokenizer"
REFUSED = "chat_template"


def attack(cache: Path) -> None:
    change_sealed(
        cache, TOKENIZER_CONFIG, lambda config: config.update(chat_template="{{ cycler.__init__.__globals__ }}")
    )


if __name__ == "__main__":
    running.alone()
