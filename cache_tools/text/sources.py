"""Documents and evaluation items from files, folders and the hub, one at a time.

A document is a line of a `.txt` file, the field `text` of a line of a `.jsonl` file, or the column `text` of a row of a
`.parquet` file. Blank lines are not documents. Evaluation items may also come from tables (`.tsv`, `.csv`) and CoNLL
files, one token with its label a line. All but `.parquet` may be compressed (`.gz`, `.xz`, `.zst`).
"""

import csv
import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from os.path import exists  # unlike that of Path it takes names that no disk has
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from cache_tools.errors import CometError, visible
from cache_tools.places.destinations import SEAL, enclosing_cache
from cache_tools.places.foreign import is_left_by_system, named
from cache_tools.settings import is_hub_text
from cache_tools.store.recipe import TEXT_FORM
from cache_tools.text.compressed import COMPRESSIONS, READ_ERRORS, open_binary
from cache_tools.text.hub_text import HubText, hub_documents, parse_hub_text

LABEL = re.compile(r"[A-Z]+(-[A-Z]+)?")  # `VERB`, `B-LOC`
NAME_LABEL = re.compile(r"O|[BIESLUbieslu]-\w+")  # `O`, `B-LOC`, `b-loc`
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
        return _text_format(self.path)

    def sha256(self) -> str:
        """Return SHA-256 of the file as it is on disk."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def record(self) -> dict[str, object]:
        """Return the fields that a cache keeps of the file and a resumed build compares."""
        return {"name": self.name, "bytes": self.bytes, "sha256": self.sha256()}


def _text_format(path: Path) -> str:
    """Return the format of a file by its name, empty if there is no reader for it."""
    suffix, inner = path.suffix.lower(), Path(path.stem).suffix.lower()
    if suffix in COMPRESSIONS:
        return inner if inner in ITEM_FORMATS and inner != ".parquet" else ""
    return suffix if suffix in ITEM_FORMATS else ""


def _csv_fields(source: TextFile) -> Iterator[str]:
    _require_separator(source, ",", ";\t")
    rows = csv.reader(line for _, line in _lines(source))
    try:
        for row in rows:
            yield from row
    except csv.Error as error:
        raise CometError(
            f"{source.name} line {rows.line_num}: not CSV: {error}; is a quote open? rename a table with tabs to .tsv"
        ) from None


def _require_separator(source: TextFile, separator: str, others: str) -> None:
    """Raise CometError if the first line is a table with another separator: a short text would be one field with its
    label, and match no document."""
    line = next((line for _, line in _lines(source)), "")
    if separator not in line and any(other in line for other in others):
        raise CometError(
            f"{source.name} line 1: expected commas between the fields of a .csv, tabs between those of a .tsv, found "
            f"{line.strip()[:80]!r}; save it so, or as .txt if it has one text a line"
        )


def _is_conll(source: TextFile) -> bool:
    """Return whether every non-blank line is a token and its label, as in the `.txt` of MasakhaNER and MasakhaPOS, or
    has more columns and ends in the label of a name."""
    return all(_is_labelled(line.split()) for _, line in _lines(source) if line.strip())


def _is_labelled(columns: list[str]) -> bool:
    label = columns[-1]
    return len(columns) > 1 and bool(NAME_LABEL.fullmatch(label) or (len(columns) == 2 and LABEL.fullmatch(label)))


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


def _fields(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if sum(name == "text" for name, _ in pairs) > 1:
        raise ValueError('"text" occurs twice in an object')
    return dict(pairs)


def _json_text(line: str, source: TextFile, number: int) -> str:
    try:
        record = json.loads(line, object_pairs_hook=_fields)
    except (ValueError, RecursionError) as error:
        raise CometError(f"{source.name} line {number}: not JSON: {error}") from None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise CometError(
            f'{source.name} line {number}: expected an object with a string "text", found {line.strip()[:80]!r}; write '
            'each document as {"text": "…"} on a line of its own'
        )
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
            if columns.count("text") != 1:
                raise CometError(f'{source.name}: expected one string column "text", found {sorted(columns)}')
            for batch in file.iter_batches(columns=["text"]):
                for value in batch.column("text"):
                    number += 1
                    text = _parquet_text(value, f"{source.name} row {number}")
                    if document := text.strip():
                        yield document
    except (OSError, pyarrow.ArrowException) as error:
        raise CometError(f"{source.name}: cannot be read as Parquet: {error}") from error


def _parquet_text(value: Any, where: str) -> str:
    try:
        text = value.as_py()
    except UnicodeDecodeError as error:
        raise CometError(f"{where}: byte {error.start + 1} is not UTF-8; write the file again as UTF-8") from None
    if not isinstance(text, str):
        raise CometError(f'{where}: expected a string in the column "text", found {str(text)[:40]!r}')
    return text


def _lines_of_text(source: TextFile) -> Iterator[str]:
    for _, line in _lines(source):
        yield line.strip()


def _json_documents(source: TextFile) -> Iterator[str]:
    for number, line in _lines(source):
        if line.strip():
            yield _json_text(line, source, number).strip()


def _text_items(source: TextFile) -> Iterator[str]:
    return _conll_sentences(source) if _is_conll(source) else _lines_and_fields(source)


def _lines_and_fields(source: TextFile) -> Iterator[str]:
    """Yield each line, and the fields of one with tabs, which may be a text and its label."""
    for line in _lines_of_text(source):
        yield line
        if "\t" in line:
            yield from line.split("\t")


def _tab_separated_fields(source: TextFile) -> Iterator[str]:
    _require_separator(source, "\t", ",;")
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
        if not given.strip() or not exists(path):
            raise CometError(f"{option} {given}: no such file or folder", exit_code=2)
        if not path.is_file() and not path.is_dir():
            raise CometError(
                f"{option} {given}: not a file that can be read twice; write a pipe's content to a file first",
                exit_code=2,
            )
        if (cache := enclosing_cache(path)) is not None:
            raise CometError(f"{option} {given}: lies in the cache {cache}, whose files are not texts", exit_code=2)
        files = _files_of_folder(path, option, formats) if path.is_dir() else [path]
        if not files:
            raise CometError(f"{option} {given}: the folder holds no {', '.join(formats)} file", exit_code=2)
        for file in files:
            if _text_format(file) not in formats:
                raise CometError(
                    f"{option} {given}: expected {', '.join(formats)} (all but .parquet also with "
                    f"{', '.join(COMPRESSIONS)}), found {file.name!r}; save it as .txt, one document per line",
                    exit_code=2,
                )
            sources.append(TextFile(file, file.name, file.stat().st_size))
    return tuple(sources)


def _files_of_folder(folder: Path, option: str, formats: tuple[str, ...]) -> list[Path]:
    """Return the files of these formats below a folder by name, without hidden ones and those of caches; print the
    names of others."""
    found = []
    caches = {seal.parent.parent for seal in folder.rglob(SEAL)}
    others = [cache.relative_to(folder).as_posix() for cache in sorted(caches)]
    for path in sorted(folder.rglob("*")):
        if any(part.startswith(".") or is_left_by_system(part) for part in path.relative_to(folder).parts):
            continue  # a system's or a notebook's own copies
        if not caches.isdisjoint(path.parents):
            continue
        if path.is_file() and _text_format(path) in formats:
            found.append(path)
        elif not path.is_dir() or path.is_symlink():
            others.append(path.relative_to(folder).as_posix())
    if others and found:
        tqdm.write(
            visible(
                f"{option} {folder}: left out for their endings, as caches, or as links to folders: {named(others)}"
            )
        )
    return found


def documents(source: TextFile | HubText) -> Iterator[str]:
    """Yield the documents of one file or data set in order, stripped and in Unicode's form NFC.

    Letters with separate marks (NFD) would be tokenised differently: SentencePiece's table of characters, as the
    tokenizers library applies it, loses the tones of Yorùbá.

    Raises CometError naming the file and line for bytes that are not UTF-8, a line over 64 MiB, broken JSON, or a
    record without a text, and as `hub_documents` does.
    """
    found = hub_documents(source) if isinstance(source, HubText) else READERS[source.format](source)
    return (unicodedata.normalize(TEXT_FORM, text) for text in found if text)


def items(source: TextFile) -> Iterator[str]:
    """Yield the items of an evaluation file in order; some may have no words.

    Every field of a table is an item: each set has its text in another column, and labels, numbers and column names are
    too short to match any document but one of just that. Quotes in a `.tsv` are ordinary characters, as in AfriSenti.
    Raises CometError as `documents` does.
    """
    return ITEM_READERS[source.format](source)
