"""An extent of billions of shards, where the recipe has four."""

from pathlib import Path

import running
from forging import change_record

from cache_tools.store.ledger import EXTENT

AGAINST = "info"
REFUSED = "shards of train: expected ascending ranges up to 4"


def attack(cache: Path) -> None:
    change_record(cache, EXTENT, lambda extent: extent["shards"].update(train=[[0, 2**62]]))


if __name__ == "__main__":
    running.alone()
