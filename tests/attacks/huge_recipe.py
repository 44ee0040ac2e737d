"""A recipe whose numbers are all allowed, and whose shards would take terabytes."""

from pathlib import Path

import running
from forging import change_recipe

AGAINST = "train"
REFUSED = "bytes of memory, most of them for sample_id"


def attack(cache: Path) -> None:
    change_recipe(cache, rows_per_shard=2**20, seq_len=2**15, max_targets=2**15, train_rows=2**40)


if __name__ == "__main__":
    running.alone()
