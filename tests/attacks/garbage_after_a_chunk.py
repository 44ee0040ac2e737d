"""Bytes after the end of a chunk, known to the ledger."""

from pathlib import Path

import running
from forging import chunk_path, write_chunk

AGAINST = "train"
REFUSED = "train/attention: a chunk does not match its crc32c"


def attack(cache: Path) -> None:
    write_chunk(cache, "attention", (cache / chunk_path(cache, "attention")).read_bytes() + b"more")


if __name__ == "__main__":
    running.alone()
