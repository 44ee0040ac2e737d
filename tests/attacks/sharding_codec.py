"""The sharding codec, whose index says where in a file a chunk lies."""

from pathlib import Path
from typing import Any

import running
from forging import ARRAY, change_sealed

AGAINST = "train"
REFUSED = "codecs: expected"


def attack(cache: Path) -> None:
    def shard(array: dict[str, Any]) -> None:
        inner = {"chunk_shape": [1, 2, 2], "codecs": array["codecs"], "index_codecs": [{"name": "bytes"}]}
        array["codecs"] = [{"name": "sharding_indexed", "configuration": inner}]

    change_sealed(cache, ARRAY, shard)


if __name__ == "__main__":
    running.alone()
