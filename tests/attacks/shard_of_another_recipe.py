"""A shard of a cache of another recipe, with its record."""

import shutil
import tempfile
from pathlib import Path

import running
from forging import RECORD, sound_cache

AGAINST = "train"
REFUSED = "recipe_id: expected"


def attack(cache: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        other = sound_cache(Path(folder), "topk")
        shutil.copy(other / RECORD, cache / RECORD)


if __name__ == "__main__":
    running.alone()
