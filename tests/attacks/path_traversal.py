"""A seal that lists a file outside of the cache."""

from pathlib import Path

import running
from forging import change_record

from cache_tools.store.ledger import SEAL

AGAINST = "train"
REFUSED = "expected records of"


def attack(cache: Path) -> None:
    (cache.parent / "secret").write_text("secret")
    change_record(cache, SEAL, lambda seal: seal["files"].update({"../secret": seal["files"]["zarr.json"]}))


if __name__ == "__main__":
    running.alone()
