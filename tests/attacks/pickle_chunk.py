"""A chunk that is a pickle, though the metadata does not say so."""

import pickle
from pathlib import Path

import running
from forging import write_chunk
from payload import Payload

AGAINST = "train"
REFUSED = "does not match its crc32c"


def attack(cache: Path) -> None:
    write_chunk(cache, "entropy", pickle.dumps(Payload(cache.parent))[:80])


if __name__ == "__main__":
    running.alone()
