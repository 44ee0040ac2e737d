"""Documents from files and folders, one at a time.

A document is a line of a `.txt` file, the field `text` of a line of a `.jsonl` file, or the column `text` of a row
of a `.parquet` file. `.txt` and `.jsonl` may be compressed (`.gz`, `.xz`, `.zst`). Blank lines are not documents.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec

from cache_tools.errors import CometError

COMPRESSIONS = {".gz": "gzip", ".xz": "xz", ".zst": "zstd"}
FORMATS = (".txt", ".jsonl", ".parquet")
MAX_LINE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Source:
    """One text file. `name` is what a cache records of it; the folder it lies in stays private."""

    path: Path
    name: str
    bytes: int


def find_sources(paths: tuple[str, ...]) -> tuple[Source, ...]:
    """The text files that `paths` (files or folders) stand for, folders in the order of their file names.

    Raises CometError when a path does not exist, a file has another ending, or a folder holds no text file.
    """
    sources: list[Source] = []
    for given in paths:
        path = Path(given)
        if not path.exists():
            raise CometError(f"--text {given}: no such file or folder", exit_code=2)
        files = sorted(f for f in path.rglob("*") if f.is_file() and is_text(f)) if path.is_dir() else [path]
        if not files:
            raise CometError(f"--text {given}: the folder holds no {', '.join(FORMATS)} file", exit_code=2)
        for file in files:
            if not is_text(file):
                raise CometError(
                    f"--text {given}: expected {', '.join(FORMATS)} (the first two also with "
                    f"{', '.join(COMPRESSIONS)}), found {file.name!r}",
                    exit_code=2,
                )
            sources.append(Source(file, file.name, file.stat().st_size))
    return tuple(sources)


def is_text(path: Path) -> bool:
    return path.suffix in FORMATS or (path.suffix in COMPRESSIONS and Path(path.stem).suffix in FORMATS[:2])


def documents(source: Source) -> Iterator[str]:
    """The documents of one file, stripped, in order.

    Raises CometError naming the file and line for bytes that are not UTF-8, a line over 64 MiB, broken JSON,
    or a record without a text.
    """
    if source.path.suffix == ".parquet":
        yield from parquet_documents(source)
        return
    compression = COMPRESSIONS.get(source.path.suffix)
    is_json = ".jsonl" in source.path.suffixes[-2:]
    with fsspec.open(str(source.path.absolute()), "rb", compression=compression) as file:
        number = 0
        while raw := read_line(file, source, number + 1):
            number += 1
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise CometError(
                    f"{source.name} line {number}: byte {error.start + 1} is not UTF-8 "
                    f"({raw[error.start : error.start + 4]!r}); convert the file to UTF-8 first"
                ) from None
            if number == 1:
                line = line.removeprefix("\ufeff")
            if is_json and line.strip():
                line = json_text(line, source, number)
            if document := line.strip():
                yield document


def read_line(file: fsspec.core.OpenFile, source: Source, number: int) -> bytes:
    try:
        line: bytes = file.readline(MAX_LINE_BYTES + 1)
    except (OSError, EOFError, ValueError) as error:
        raise CometError(f"{source.name} line {number}: cannot be read: {error}") from error
    if len(line) > MAX_LINE_BYTES:
        raise CometError(
            f"{source.name} line {number}: longer than {MAX_LINE_BYTES >> 20} MiB; expected one document per line"
        )
    return line


def json_text(line: str, source: Source, number: int) -> str:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise CometError(f"{source.name} line {number}: not JSON: {error}") from None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise CometError(f'{source.name} line {number}: expected an object with a string "text"')
    return text


def parquet_documents(source: Source) -> Iterator[str]:
    import datasets  # here: it is slow to import, and only Parquet needs it

    try:
        rows = datasets.load_dataset("parquet", data_files=str(source.path), split="train", streaming=True)
        for number, row in enumerate(rows, 1):
            text = row.get("text")
            if not isinstance(text, str):
                raise CometError(f'{source.name} row {number}: expected a string column "text", found {sorted(row)}')
            if document := text.strip():
                yield document
    except (OSError, ValueError) as error:
        raise CometError(f"{source.name}: cannot be read as Parquet: {error}") from error
