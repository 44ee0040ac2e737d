"""A number that becomes infinite when it is read."""

from pathlib import Path

import running
from forging import ROOT, replace_text

AGAINST = "info"
REFUSED = "1e999 is beyond floating point"


def attack(cache: Path) -> None:
    replace_text(cache, ROOT, b"0.15", b"1e999")


if __name__ == "__main__":
    running.alone()
