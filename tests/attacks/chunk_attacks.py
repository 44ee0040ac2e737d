"""Attacks on the files of arrays: their size, their Blosc header, and what they unfold to."""

import os
import pickle
import shutil
from pathlib import Path

from forging import ARRAY, CHUNK, Attack, change_header, change_sealed, write_chunk, write_packed


class Payload:
    """An object whose pickle makes the folder `marker` when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder / "marker"),)


def header(threat: str, name: str, at: int, data: bytes, refused: str = "") -> Attack:
    """Write bytes into the Blosc header of an array's chunk."""
    refused = refused or f"train/{name}: a chunk that is not zstd in Blosc as the format has it"
    return Attack(threat, "train", lambda cache: change_header(cache, name, at, data), refused)


def word(number: int) -> bytes:
    return number.to_bytes(4, "little")


def append_to_a_chunk(cache: Path) -> None:
    write_chunk(cache, "attention_weight", (cache / "train/attention_weight/c/0/0/0/0").read_bytes() + b"more")


def pickle_by_codec(cache: Path) -> None:
    write_chunk(cache, "entropy", pickle.dumps(Payload(cache.parent)))
    change_sealed(cache, ARRAY, lambda array: array.update(codecs=[{"name": "numcodecs.pickle", "configuration": {}}]))


def exchange_shards(cache: Path) -> None:
    one, other = (cache / "train/sample_id/c" / shard / "0/0/0" for shard in "01")
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def pack_zstd_bomb(cache: Path) -> None:
    block = ((128 * 1024) << 3 | 2).to_bytes(3, "little") + b"\0"  # 128 KiB of one byte
    frame = bytes.fromhex("28b52ffd") + b"\x80\x58" + word(2**31 - 1) + block * 20
    body = word(20) + word(len(frame)) + frame
    write_packed(cache, "attention_weight", bytes([2, 1, 0b1001_0001, 1]) + word(256) * 2 + word(16 + len(body)) + body)


ATTACKS = {
    # the Blosc header: versions, flags, item size, size, block size, compressed size, offsets of the blocks
    "blosc_version_lie": header("A chunk of a version of Blosc that does not exist.", "sample_id", 0, b"\xff"),
    "another_compressor": header(
        "A chunk that Blosc decompresses by a library other than zstd.", "attention_weight", 2, bytes([0b0010_0001])
    ),
    "type_size_lie": header(
        "A chunk of another item size, which shuffles its bytes into other numbers.", "sample_id", 3, b"\x02"
    ),
    "chunk_bomb": header(
        "A chunk that says it becomes two gigabytes.",
        "entropy",
        4,
        word(2**31 - 1),
        "a chunk declares 2147483647 bytes, expected 64",
    ),
    "block_size_lie": header(
        "A chunk of blocks of two gigabytes, for which Blosc makes room.", "attention_weight", 8, word(2**31 - 1)
    ),
    "block_size_of_zero": header(
        "A chunk of blocks of no bytes, by which Blosc divides.", "attention_weight", 8, word(0)
    ),
    "many_tiny_blocks": header(
        "A chunk of blocks of one byte, each with an offset of its own.", "attention_weight", 8, word(1)
    ),
    "compressed_beyond_the_end": header(
        "A chunk whose compressed part is said to go on beyond its end, into memory that is not its own.",
        "entropy",
        12,
        word(2**30),
        "a chunk declares 1073741824 compressed bytes",
    ),
    "offsets_outside": header(
        "A chunk whose blocks begin outside of it.",
        "attention_weight",
        16,
        word(2**31 - 16),
        "train/attention_weight: a chunk cannot be decompressed",
    ),
    # what is in the file, and how much of it
    "zstd_bomb": Attack(
        "A chunk of honest sizes with a zstd frame inside that unfolds to megabytes.",
        "train",
        pack_zstd_bomb,
        "train/attention_weight: a chunk cannot be decompressed",
    ),
    "garbage_after_a_chunk": Attack(
        "Bytes after the end of a chunk, known to the ledger.",
        "train",
        append_to_a_chunk,
        "train/attention_weight: a chunk does not match its crc32c",
    ),
    "gigabytes_of_chunk": Attack(
        "A chunk file of eight gigabytes that takes no room on the attacker's disk.",
        "train",
        lambda cache: os.truncate(cache / CHUNK, 2**33),
        "larger than the 84 bytes it may have",
    ),
    "pickle_chunk": Attack(
        "A chunk that is a pickle, though the metadata does not say so.",
        "train",
        lambda cache: write_chunk(cache, "entropy", pickle.dumps(Payload(cache.parent))[:80]),
        "does not match its crc32c",
    ),
    "pickle_codec": Attack(
        "Chunks as pickles, by the codec of numcodecs.", "train", pickle_by_codec, "codecs: expected"
    ),
    # sound files in the wrong place, or in none
    "swapped_shards": Attack(
        "The files of two shards exchanged, which alone are sound.", "train", exchange_shards, "do not match the ledger"
    ),
    "listed_and_absent": Attack(
        "A ledger that lists a shard whose files are not there.",
        "train",
        lambda cache: shutil.rmtree(cache / "train/entropy/c/2"),
        "cannot be read",
    ),
}
