"""Files that the ledger does not list, such as code beside the tokenizer."""

from pathlib import Path

import running

AGAINST = "verify --deep"
REFUSED = "tokenizer/tokenization_evil.py: unknown file"


def attack(cache: Path) -> None:
    (cache / "tokenizer/tokenization_evil.py").write_text("raise SystemExit")


if __name__ == "__main__":
    running.alone()
