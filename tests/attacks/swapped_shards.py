"""The files of two shards exchanged, which alone are sound."""

from pathlib import Path

import running

AGAINST = "train"
REFUSED = "do not match the ledger"


def attack(cache: Path) -> None:
    one, other = (cache / "train/sample_id/c" / shard / "0/0/0" for shard in "01")
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


if __name__ == "__main__":
    running.alone()
