"""Documents → packed token rows, and the split into train and validation. Pure, and the same on every machine."""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray


def document_hash(text: str) -> int:
    """Return 64 bits of SHA-256 of the document, which decide whether it goes to validation."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def validation_share(targets: float, targets_wanted: int = 10_000) -> float:
    """Return the share of documents to set aside of a corpus with this many targets.

    1 %, more if that gives fewer targets than wanted, a tenth at most.
    """
    return min(max(0.01, targets_wanted / max(1.0, targets)), 0.1)


def is_validation(hash_: int, share: float) -> bool:
    """Return whether a document with this `document_hash` is in the share set aside for validation."""
    return hash_ < int(share * 2**64)


def pack(documents: Iterable[NDArray[np.int32]], seq_len: int, bos: int, eos: int) -> Iterator[NDArray[np.int32]]:
    """Yield rows `bos doc eos doc … eos` of at most `seq_len` tokens; what overflows continues in the next row.

    Empty documents leave no trace. Every row but the last has `seq_len` tokens, or one less where only a separator
    would have fitted.
    """
    row: list[NDArray[np.int32]] = []
    room = seq_len - 2
    separator = np.array([eos], dtype=np.int32)
    first, last = np.array([bos], dtype=np.int32), separator
    for document in documents:
        rest = document
        while len(rest):
            if row and room < 2:
                yield np.concatenate([first, *row, last])
                row, room = [], seq_len - 2
            if row:
                row.append(separator)
                room -= 1
            part, rest = rest[:room], rest[room:]
            row.append(part)
            room -= len(part)
    if row:
        yield np.concatenate([first, *row, last])
