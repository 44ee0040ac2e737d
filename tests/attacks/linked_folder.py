"""A folder of the cache that is a link to one outside, where a repair would remove files."""

from pathlib import Path

import running

AGAINST = "train"
REFUSED = "a link"


def attack(cache: Path) -> None:
    (cache / "train").rename(cache.parent / "elsewhere")
    (cache / "train").symlink_to(cache.parent / "elsewhere")


if __name__ == "__main__":
    running.alone()
