"""Attributes beside ours, as many as the root has room for."""

from pathlib import Path

import running
from forging import ROOT, change_sealed

AGAINST = "info"
REFUSED = "attributes: expected"


def attack(cache: Path) -> None:
    change_sealed(cache, ROOT, lambda root: root["attributes"].update({str(n): n for n in range(50_000)}))


if __name__ == "__main__":
    running.alone()
