"""A chunk that is a link to a sound one elsewhere: what is checked now is another file later."""

from pathlib import Path

import running
from forging import chunk_path

AGAINST = "train"
REFUSED = "a link"


def attack(cache: Path) -> None:
    file = cache / chunk_path(cache, "entropy")
    file.rename(cache.parent / "elsewhere")
    file.symlink_to(cache.parent / "elsewhere")


if __name__ == "__main__":
    running.alone()
