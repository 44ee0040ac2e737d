"""An extent of 200,000 ranges, as many as a record has room for."""

from pathlib import Path

import running
from forging import change_record

from cache_tools.store.ledger import EXTENT

AGAINST = "info"
REFUSED = "shards of train: expected ascending ranges up to 4"


def attack(cache: Path) -> None:
    change_record(
        cache, EXTENT, lambda extent: extent["shards"].update(train=[[n, n + 1] for n in range(0, 400_000, 2)])
    )


if __name__ == "__main__":
    running.alone()
