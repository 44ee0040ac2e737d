"""Lists in lists, half a million deep, to overflow the stack of a parser."""

from pathlib import Path

import running
from forging import ROOT, write_sealed

AGAINST = "info"
REFUSED = "not a valid JSON record"


def attack(cache: Path) -> None:
    write_sealed(cache, ROOT, b'{"attributes": ' + b"[" * 500_000 + b"]" * 500_000 + b"}")


if __name__ == "__main__":
    running.alone()
