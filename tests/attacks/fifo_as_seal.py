"""A named pipe in place of the seal."""

import os
from pathlib import Path

import running

from cache_tools.store.ledger import SEAL

AGAINST = "info"
REFUSED = "ledger is gone"


def attack(cache: Path) -> None:
    (cache / SEAL).unlink()
    os.mkfifo(cache / SEAL)


if __name__ == "__main__":
    running.alone()
