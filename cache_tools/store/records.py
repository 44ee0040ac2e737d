"""Small JSON records of unknown origin: canonical text, checksums, strict and bounded reading.

By hand, since the standard parser takes duplicate keys, NaN and any depth; canonical JSON (RFC 8785) writes floats
otherwise, and cache ids are hashes of this text.
"""

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from cache_tools.errors import CometError

MAX_RECORD_BYTES = 4 * 2**20
"""Enough for the seal of 60,000 shards; parsed, JSON of this size takes up to some 100 MB of memory."""

MAX_DEPTH = 32  # far below the limit of a parser, since parsed values are also written and shown

ONLY_FILES = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # no links, and no wait for a pipe's writer


def canonical(value: Any) -> bytes:
    """Return the JSON text of a value, always the same: sorted keys, no spaces, ASCII, no NaN or infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def sha256(data: bytes) -> str:
    """Return the SHA-256 of some bytes, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def with_checksum(record: dict[str, Any]) -> bytes:
    """Return the record as bytes, with a field `checksum` over the others."""
    return canonical(record | {"checksum": sha256(canonical(record))}) + b"\n"


def parse_json(data: bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object from bytes of unknown origin.

    Raises CometError for broken JSON, a duplicate key, NaN or infinity, too deep nesting, or anything but an object.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key occurs twice")
        return result

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a JSON number")

    def finite(text: str) -> float:
        if not math.isfinite(number := float(text)):
            raise ValueError(f"{text} is beyond floating point")
        return number

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise CometError(f"{what}: not a valid JSON record ({error}); the cache is damaged") from None
    if not isinstance(value, dict):
        raise CometError(f"{what}: expected a JSON object, found {type(value).__name__}; the cache is damaged")
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        insides = (outer.values() if isinstance(outer, dict) else outer for outer in level)
        level = [inner for inside in insides for inner in inside if isinstance(inner, dict | list)]
    if level:
        raise CometError(f"{what}: not a valid JSON record (nested deeper than {MAX_DEPTH}); the cache is damaged")
    return value


def read_checked(path: Path) -> dict[str, Any]:
    """Read a record written by `with_checksum` and return it without its checksum.

    Raises CometError unless the file is, byte for byte, the output of `with_checksum`.
    """
    return checked(read_bounded(path, MAX_RECORD_BYTES), path)


def checked(data: bytes, path: Path | str) -> dict[str, Any]:
    """Parse a record without its checksum; `path` is where the bytes are from. Raises CometError as `read_checked`
    does.
    """
    record = parse_json(data, str(path))
    record.pop("checksum", None)
    if data != with_checksum(record):
        raise CometError(f"{path}: its checksum does not match its content; the cache is damaged")
    return record


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file of a cache for reading. Raises CometError for a link, a pipe or a device, OSError if it cannot be
    read."""
    if path.is_symlink():
        raise CometError(f"{path}: a link; a cache holds files only. Replace it by a copy of its target")
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | ONLY_FILES)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise CometError(f"{path}: a pipe or a device; a cache holds files only")
        yield file


def read_bounded(path: Path, limit: int) -> bytes:
    """Return the whole file, never more than `limit` bytes of it.

    Raises CometError if it is larger, unreadable, a link, a pipe or a device.
    """
    try:
        with open_file(path) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise CometError(f"{path}: cannot be read ({error.strerror}); the cache is incomplete or damaged") from None
    if len(data) > limit:
        raise CometError(f"{path}: larger than the {limit} bytes it may have; the cache is damaged")
    return data


def inside(root: Path, path: str) -> Path:
    """Return a file of a cache by its path in it. Raises CometError if a folder on the way is a link."""
    folder = root
    for name in path.split("/")[:-1]:
        folder /= name
        if folder.is_symlink():
            raise CometError(f"{folder}: a link; a cache holds files only. Replace it by a copy of its target")
    return root / path


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and wait until it is on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """Wait until a file that a library wrote is on disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on disk. Windows cannot open folders, and its file system needs no call."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_durably(staged: Path, final: Path) -> None:
    """Give a file on disk its final name, and wait until the name is on disk, with those of new folders on the way."""
    folders = [final.parent, *final.parent.parents]
    known = next(number for number, folder in enumerate(folders) if folder.exists())
    final.parent.mkdir(parents=True, exist_ok=True)
    os.replace(staged, final)
    for folder in folders[: known + 1]:
        sync_folder(folder)
