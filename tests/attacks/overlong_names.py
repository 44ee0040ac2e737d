"""Files of names as long as a file system allows, in folders of such names."""

from pathlib import Path

import running

AGAINST = "verify --deep"
REFUSED = "unknown file"


def attack(cache: Path) -> None:
    folder = cache / ("x" * 255) / ("y" * 255)
    folder.mkdir(parents=True)
    (folder / ("z" * 255)).touch()


if __name__ == "__main__":
    running.alone()
