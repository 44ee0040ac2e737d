"""Chunks as pickles, by the codec of numcodecs."""

import pickle
from pathlib import Path

import running
from forging import ARRAY, change_sealed, write_chunk
from payload import Payload

AGAINST = "train"
REFUSED = "codecs: expected"


def attack(cache: Path) -> None:
    write_chunk(cache, "entropy", pickle.dumps(Payload(cache.parent)))
    change_sealed(cache, ARRAY, lambda array: array.update(codecs=[{"name": "numcodecs.pickle", "configuration": {}}]))


if __name__ == "__main__":
    running.alone()
