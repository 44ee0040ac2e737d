"""An extent without the text, whose files are there all the same: other files than those of the ledger."""

from pathlib import Path

import running
from forging import change_detached, chunk_path

AGAINST = "verify"
REFUSED = "not the file that the ledger describes"


def attack(cache: Path) -> None:
    change_detached(cache)
    (cache / chunk_path(cache, "target_id")).write_bytes(b"another text")


if __name__ == "__main__":
    running.alone()
