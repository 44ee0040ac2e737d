"""An extent that names a path as an array."""

from pathlib import Path

import running
from forging import change_record

from cache_tools.store.ledger import EXTENT

AGAINST = "train"
REFUSED = "arrays: expected some of"


def attack(cache: Path) -> None:
    change_record(cache, EXTENT, lambda extent: extent["arrays"].append("../../etc"))


if __name__ == "__main__":
    running.alone()
