"""A key twice in one object: two readers may each believe another."""

from pathlib import Path

import running
from forging import ROOT, replace_text

AGAINST = "info"
REFUSED = "a key occurs twice"


def attack(cache: Path) -> None:
    replace_text(cache, ROOT, b'"views": 1', b'"views": 2, "views": 1')


if __name__ == "__main__":
    running.alone()
