"""Attributes of a group, which a reader of Zarr hands on."""

from pathlib import Path

import running
from forging import change_sealed

AGAINST = "train"
REFUSED = "train/zarr.json: attributes: expected"


def attack(cache: Path) -> None:
    change_sealed(cache, "train/zarr.json", lambda group: group.update(attributes={"comet": {}}))


if __name__ == "__main__":
    running.alone()
