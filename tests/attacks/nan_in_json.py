"""NaN, which is no JSON, in the recipe."""

from pathlib import Path

import running
from forging import ROOT, replace_text

AGAINST = "info"
REFUSED = "NaN is not a JSON number"


def attack(cache: Path) -> None:
    replace_text(cache, ROOT, b"0.15", b"NaN")


if __name__ == "__main__":
    running.alone()
