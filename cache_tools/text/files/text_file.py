"""One text file: its format, its identity, and its lines."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cache_tools.errors import CometError
from cache_tools.text.compressed import COMPRESSIONS, READ_ERRORS, open_binary

FORMATS = (".txt", ".jsonl", ".parquet")
ITEM_FORMATS = (*FORMATS, ".tsv", ".csv", ".conll")
MAX_LINE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class TextFile:
    """One text file. A cache records `name`; its folder stays private."""

    path: Path
    name: str
    bytes: int

    @property
    def format(self) -> str:
        """The ending without that of a compression: `.txt`, `.jsonl`, …."""
        return text_format(self.path)

    def sha256(self) -> str:
        """Return SHA-256 of the file as it is on disk."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def record(self) -> dict[str, object]:
        """Return the fields that a cache keeps of the file and a resumed build compares."""
        return {"name": self.name, "bytes": self.bytes, "sha256": self.sha256()}


def text_format(path: Path) -> str:
    """Return the format of a file by its name, empty if there is no reader for it."""
    suffix, inner = path.suffix.lower(), Path(path.stem).suffix.lower()
    if suffix in COMPRESSIONS:
        return inner if inner in ITEM_FORMATS and inner != ".parquet" else ""
    return suffix if suffix in ITEM_FORMATS else ""


def lines_of(source: TextFile) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line, including its end."""
    with open_binary(source.path) as file:
        number = 0
        while raw := _read_line(file, source, number + 1):
            number += 1
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise CometError(
                    f"{source.name} line {number}: byte {error.start + 1} is not UTF-8 "
                    f"({raw[error.start : error.start + 4]!r}); convert the file to UTF-8 first, "
                    "as by iconv -f latin1 -t utf-8"
                ) from None
            if number == 1:
                line = line.removeprefix("\ufeff")
            if "\0" in line:
                raise CometError(
                    f"{source.name} line {number}: holds a NUL; if it is UTF-16, convert it to UTF-8 first"
                )
            yield number, line


def _read_line(file: BinaryIO, source: TextFile, number: int) -> bytes:
    try:
        line = file.readline(MAX_LINE_BYTES + 1)
    except READ_ERRORS as error:
        advice = "; is its content what its ending says?" if number == 1 else ""
        advice = "; compress it again without --long" if "too much memory" in str(error) else advice
        raise CometError(f"{source.name} line {number}: cannot be read: {error}{advice}") from error
    if len(line) > MAX_LINE_BYTES:
        raise CometError(
            f"{source.name} line {number}: longer than {MAX_LINE_BYTES >> 20} MiB; expected one document per line"
        )
    return line
