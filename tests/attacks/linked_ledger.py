"""A ledger that is a link to another cache's, whose records a build would write."""

from pathlib import Path

import running

AGAINST = "info"
REFUSED = "a link"


def attack(cache: Path) -> None:
    (cache / "ledger").rename(cache.parent / "elsewhere")
    (cache / "ledger").symlink_to(cache.parent / "elsewhere")


if __name__ == "__main__":
    running.alone()
