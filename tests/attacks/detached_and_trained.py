"""An extent without the text, whose files are there all the same: what nothing vouches for, fed to a training."""

from pathlib import Path

import running
from forging import change_detached

AGAINST = "train"
REFUSED = "holds no text; attach the text first: comet-cache attach"


def attack(cache: Path) -> None:
    change_detached(cache)


if __name__ == "__main__":
    running.alone()
