"""Two million attributes on an array."""

from pathlib import Path

import running
from forging import ARRAY, write_sealed

AGAINST = "info"
REFUSED = "a size up to 65536"


def attack(cache: Path) -> None:
    attributes = b",".join(b'"%d":0' % number for number in range(2_000_000))
    write_sealed(cache, ARRAY, b'{"attributes":{' + attributes + b"}}")


if __name__ == "__main__":
    running.alone()
