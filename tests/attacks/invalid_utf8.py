"""Bytes that are no UTF-8."""

from pathlib import Path

import running
from forging import ROOT, replace_text

AGAINST = "info"
REFUSED = "not a valid JSON record"


def attack(cache: Path) -> None:
    replace_text(cache, ROOT, b"Kinyarwanda", b"Kinya\xffrwanda")


if __name__ == "__main__":
    running.alone()
