"""The tokens of one shard in place of another's, all signed: rows with the logits of others."""

from pathlib import Path

import running
from forging import write_array

from cache_tools import open_cache
from cache_tools.signals import TOKEN_ARRAYS

AGAINST = "verify --deep"
REFUSED = "the rows are not the token stream that the recipe knows of"


def attack(cache: Path) -> None:
    tokens = open_cache(cache).read_shard("train", 1, TOKEN_ARRAYS)
    for name, array in tokens.items():
        write_array(cache, name, array)


if __name__ == "__main__":
    running.alone()
