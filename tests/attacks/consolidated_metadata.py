"""Consolidated metadata, by which Zarr would read other arrays than the files say."""

from pathlib import Path

import running
from forging import ROOT, change_sealed

AGAINST = "info"
REFUSED = "consolidated_metadata: expected"


def attack(cache: Path) -> None:
    change_sealed(
        cache,
        ROOT,
        lambda root: root.update(consolidated_metadata={"kind": "inline", "must_understand": False, "metadata": {}}),
    )


if __name__ == "__main__":
    running.alone()
