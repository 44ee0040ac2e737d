"""A chunk of honest sizes with a zstd frame inside that unfolds to megabytes."""

from pathlib import Path

import running
from forging import write_packed

AGAINST = "train"
REFUSED = "train/attention: a chunk cannot be decompressed"


def attack(cache: Path) -> None:
    block = ((128 * 1024) << 3 | 2).to_bytes(3, "little") + b"\0"  # 128 KiB of one byte
    frame = bytes.fromhex("28b52ffd") + b"\x80\x58" + (2**31 - 1).to_bytes(4, "little") + block * 20
    header = bytes([2, 1, 0b1001_0001, 1]) + (128).to_bytes(4, "little") * 2
    body = (20).to_bytes(4, "little") + len(frame).to_bytes(4, "little") + frame
    write_packed(cache, "attention", header + (16 + len(body)).to_bytes(4, "little") + body)


if __name__ == "__main__":
    running.alone()
