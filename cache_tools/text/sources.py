"""Documents and evaluation items from files, folders and the hub, one at a time.

A document is a line of a `.txt` file, the field `text` of a line of a `.jsonl` file, or the column `text` of a row of a
`.parquet` file. Blank lines are not documents. Evaluation items may also come from tables (`.tsv`, `.csv`) and CoNLL
files, one token with its label a line. All but `.parquet` may be compressed (`.gz`, `.xz`, `.zst`).
"""

import csv
import gzip
import hashlib
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, cast

from cache_tools.errors import CometError
from cache_tools.settings import is_hub_text
from cache_tools.text.hub_text import HubText, hub_documents, parse_hub_text

COMPRESSIONS = (".gz", ".xz", ".zst")
LABELLED_TOKEN = re.compile(r"\S+[ \t]+[A-Z]+(-[A-Z]+)?\s*")  # `Kigali B-LOC`, `ni VERB`
MAX_LINE_BYTES = 64 * 2**20
READ_ERRORS = (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error)


@dataclass(frozen=True)
class TextFile:
    """One text file. A cache records `name`; its folder stays private."""

    path: Path
    name: str
    bytes: int

    @property
    def format(self) -> str:
        """The ending without that of a compression: `.txt`, `.jsonl`, …."""
        return _text_format(self.path)

    def sha256(self) -> str:
        """Return SHA-256 of the file as it is on disk."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def record(self) -> dict[str, object]:
        """Return the fields that a cache keeps of the file and a resumed build compares."""
        return {"name": self.name, "bytes": self.bytes, "sha256": self.sha256()}


def _text_format(path: Path) -> str:
    """Return the format by a file's name, empty if it cannot be read."""
    if path.suffix in COMPRESSIONS:
        inner = Path(path.stem).suffix
        return inner if inner in ITEM_FORMATS and inner != ".parquet" else ""
    return path.suffix if path.suffix in ITEM_FORMATS else ""


def _csv_fields(source: TextFile) -> Iterator[str]:
    rows = csv.reader(line for _, line in _lines(source))
    try:
        for row in rows:
            yield from row
    except csv.Error as error:
        raise CometError(
            f"{source.name} line {rows.line_num}: not CSV: {error}; is a quote open? rename a table with tabs to .tsv"
        ) from None


def _is_conll(source: TextFile) -> bool:
    """Return whether every non-blank line is a token and its label, as in the `.txt` of MasakhaNER and MasakhaPOS."""
    return all(LABELLED_TOKEN.fullmatch(line) for _, line in _lines(source) if line.strip())


def _conll_sentences(source: TextFile) -> Iterator[str]:
    """Yield the tokens (first column) of each sentence, joined by spaces; blank lines separate sentences."""
    tokens: list[str] = []
    for _, line in _lines(source):
        if line.strip():
            tokens.append(line.split(maxsplit=1)[0])
        else:
            yield " ".join(tokens)
            tokens = []
    yield " ".join(tokens)


def _lines(source: TextFile) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line, including its end."""
    with open_binary(source) as file:
        number = 0
        while raw := _read_line(file, source, number + 1):
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
            yield number, line


def open_binary(source: TextFile) -> BinaryIO:
    """Open a file for its decompressed bytes."""
    if source.path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(source.path, "rb"))
    if source.path.suffix == ".xz":
        return cast(BinaryIO, lzma.open(source.path, "rb"))
    if source.path.suffix == ".zst":
        import pyarrow  # here: slow to import; unlike zstandard's reader it raises an error for a truncated file

        return io.BufferedReader(cast(io.RawIOBase, pyarrow.input_stream(source.path, compression="zstd")), 2**20)
    return source.path.open("rb")


def _read_line(file: BinaryIO, source: TextFile, number: int) -> bytes:
    try:
        line = file.readline(MAX_LINE_BYTES + 1)
    except READ_ERRORS as error:
        raise CometError(f"{source.name} line {number}: cannot be read: {error}") from error
    if len(line) > MAX_LINE_BYTES:
        raise CometError(
            f"{source.name} line {number}: longer than {MAX_LINE_BYTES >> 20} MiB; expected one document per line"
        )
    return line


def _json_text(line: str, source: TextFile, number: int) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CometError(f"{source.name} line {number}: not JSON: {error}") from None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise CometError(f'{source.name} line {number}: expected an object with a string "text"')
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise CometError(f"{source.name} line {number}: half a surrogate pair (\\ud800 to \\udfff) is not text")
    return text


def _parquet_documents(source: TextFile) -> Iterator[str]:
    import pyarrow  # here: slow to import, and only Parquet needs it
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(source.path) as file:
            columns = file.schema_arrow.names
            for batch in file.iter_batches(columns=[name for name in columns if name == "text"]):
                texts = batch.column("text").to_pylist() if "text" in columns else [None]
                for text in texts:
                    number += 1
                    if not isinstance(text, str):
                        raise CometError(
                            f'{source.name} row {number}: expected a string column "text", found {sorted(columns)}'
                        )
                    if document := text.strip():
                        yield document
    except (OSError, pyarrow.ArrowException) as error:
        raise CometError(f"{source.name}: cannot be read as Parquet: {error}") from error


def _lines_of_text(source: TextFile) -> Iterator[str]:
    for _, line in _lines(source):
        yield line.strip()


def _json_documents(source: TextFile) -> Iterator[str]:
    for number, line in _lines(source):
        if line.strip():
            yield _json_text(line, source, number).strip()


def _text_items(source: TextFile) -> Iterator[str]:
    return _conll_sentences(source) if _is_conll(source) else _lines_of_text(source)


def _tab_separated_fields(source: TextFile) -> Iterator[str]:
    for _, line in _lines(source):
        yield from line.split("\t")


READERS: dict[str, Callable[[TextFile], Iterator[str]]] = {
    ".txt": _lines_of_text,
    ".jsonl": _json_documents,
    ".parquet": _parquet_documents,
}
"""By file extension what yields the documents of a file, stripped; an empty one counts for nothing."""

ITEM_READERS = READERS | {
    ".txt": _text_items,
    ".tsv": _tab_separated_fields,
    ".csv": _csv_fields,
    ".conll": _conll_sentences,
}
"""By file extension what yields the items of an evaluation file; some may have no words."""

FORMATS, ITEM_FORMATS = tuple(READERS), tuple(ITEM_READERS)


def find_texts(given: tuple[str, ...]) -> tuple[TextFile | HubText, ...]:
    """Return the sources of `--text`, in order: files, those of folders, and data sets of the hub.

    Raises CometError as `find_sources` and `parse_hub_text` do.
    """
    found = ((parse_hub_text(one),) if is_hub_text(one) else find_sources((one,)) for one in given)
    return tuple(chain.from_iterable(found))


def find_sources(
    paths: tuple[str, ...], option: str = "--text", formats: tuple[str, ...] = FORMATS
) -> tuple[TextFile, ...]:
    """Return the files of these formats at `paths` (files or folders), those of a folder in the order of their names.

    Raises CometError if a path does not exist, a file has another ending, or a folder holds no such file.
    """
    sources: list[TextFile] = []
    for given in paths:
        path = Path(given)
        if not path.exists():
            raise CometError(f"{option} {given}: no such file or folder", exit_code=2)
        files = (
            sorted(f for f in path.rglob("*") if f.is_file() and _text_format(f) in formats)
            if path.is_dir()
            else [path]
        )
        if not files:
            raise CometError(f"{option} {given}: the folder holds no {', '.join(formats)} file", exit_code=2)
        for file in files:
            if _text_format(file) not in formats:
                raise CometError(
                    f"{option} {given}: expected {', '.join(formats)} (all but .parquet also with "
                    f"{', '.join(COMPRESSIONS)}), found {file.name!r}",
                    exit_code=2,
                )
            sources.append(TextFile(file, file.name, file.stat().st_size))
    return tuple(sources)


def documents(source: TextFile | HubText) -> Iterator[str]:
    """Yield the documents of one file or data set, stripped, in order.

    Raises CometError naming the file and line for bytes that are not UTF-8, a line over 64 MiB, broken JSON, or a
    record without a text, and as `hub_documents` does.
    """
    found = hub_documents(source) if isinstance(source, HubText) else READERS[source.format](source)
    return filter(None, found)


def items(source: TextFile) -> Iterator[str]:
    """Yield the items of an evaluation file in order; some may have no words.

    Every field of a table is an item: each set has its text in another column, and labels, numbers and column names are
    too short to match any document but one of just that. Quotes in a `.tsv` are ordinary characters, as in AfriSenti.
    Raises CometError as `documents` does.
    """
    return ITEM_READERS[source.format](source)
