"""A recipe of 2⁴⁰ shards, with an extent that claims them all."""

from pathlib import Path

import running
from forging import change_recipe, change_record

from cache_tools.store.ledger import EXTENT

AGAINST = "info"
REFUSED = "token_digests: expected 1099511627776 digests of train"


def attack(cache: Path) -> None:
    change_recipe(cache, train_rows=2**40, rows_per_shard=1)
    change_record(cache, EXTENT, lambda extent: extent["shards"].update(train=[[0, 2**40]]))


if __name__ == "__main__":
    running.alone()
