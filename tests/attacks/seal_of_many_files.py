"""A seal that lists thousands of files that no cache has."""

from pathlib import Path

import running
from forging import change_record

from cache_tools.store.ledger import SEAL

AGAINST = "info"
REFUSED = "expected records of"


def attack(cache: Path) -> None:
    files = {f"vocabulary/{number}": {"bytes": 1, "sha256": "a" * 64} for number in range(30_000)}
    change_record(cache, SEAL, lambda seal: seal["files"].update(files))


if __name__ == "__main__":
    running.alone()
