"""Metadata of Zarr 2 with a pickle filter beside ours, for a reader that prefers it."""

import json
from pathlib import Path

import running

AGAINST = "verify --deep"
REFUSED = "train/entropy/.zarray: unknown file"


def attack(cache: Path) -> None:
    filters = [{"id": "pickle"}]
    (cache / "train/entropy/.zarray").write_text(json.dumps({"zarr_format": 2, "dtype": "|O", "filters": filters}))


if __name__ == "__main__":
    running.alone()
