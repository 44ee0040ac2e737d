"""The documents of a text: a line of a `.txt` file, the field `text` of a line of a `.jsonl` file, or the column `text`
of a row of a `.parquet` file. Blank lines are not documents.
"""

import json
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

from cache_tools.errors import CometError
from cache_tools.store.recipe import TEXT_FORM
from cache_tools.text.files.text_file import TextFile, lines_of
from cache_tools.text.hub_text import HubText, hub_documents


def documents(source: TextFile | HubText) -> Iterator[str]:
    """Yield the documents of one file or data set in order, stripped and in Unicode's form NFC.

    Letters with separate marks (NFD) would be tokenised differently: SentencePiece's table of characters, as the
    tokenizers library applies it, loses the tones of Yorùbá.

    Raises CometError naming the file and line for bytes that are not UTF-8, a line over 64 MiB, broken JSON, or a
    record without a text, and as `hub_documents` does.
    """
    found = hub_documents(source) if isinstance(source, HubText) else READERS[source.format](source)
    return (unicodedata.normalize(TEXT_FORM, text) for text in found if text)


def _lines_of_text(source: TextFile) -> Iterator[str]:
    for _, line in lines_of(source):
        yield line.strip()


def _json_documents(source: TextFile) -> Iterator[str]:
    for number, line, record in json_records(source):
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise CometError(
                f'{source.name} line {number}: expected an object with a string "text", found {line.strip()[:80]!r}; '
                'write each document as {"text": "…"} on a line of its own'
            )
        yield whole_text(text, source, number).strip()


def json_records(source: TextFile) -> Iterator[tuple[int, str, Any]]:
    """Yield number, text and value of each line of JSON that is not blank."""
    for number, line in lines_of(source):
        if line.strip():
            try:
                record = json.loads(line, object_pairs_hook=_fields)
            except (ValueError, RecursionError) as error:
                raise CometError(f"{source.name} line {number}: not JSON: {error}") from None
            yield number, line, record


def _fields(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if sum(name == "text" for name, _ in pairs) > 1:
        raise ValueError('"text" occurs twice in an object')
    return dict(pairs)


def whole_text(text: str, source: TextFile, number: int) -> str:
    """Return a string of JSON. Raises CometError for half a surrogate pair, which JSON can write."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise CometError(f"{source.name} line {number}: half a surrogate pair (\\ud800 to \\udfff) is not text")
    return text


def _parquet_documents(source: TextFile) -> Iterator[str]:
    for number, text in parquet_values(source, "text"):
        if not isinstance(text, str):
            raise CometError(
                f'{source.name} row {number}: expected a string in the column "text", found {str(text)[:40]!r}'
            )
        yield text.strip()


def parquet_values(source: TextFile, only: str | None = None) -> Iterator[tuple[int, Any]]:
    """Yield row number and value of one column, or of all columns; a batch of rows at a time."""
    import pyarrow  # here: slow to import, and only Parquet needs it
    import pyarrow.parquet

    first = 1
    try:
        with pyarrow.parquet.ParquetFile(source.path) as file:
            names = file.schema_arrow.names
            if only is not None and names.count(only) != 1:
                raise CometError(f'{source.name}: expected one string column "{only}", found {sorted(names)}')
            for batch in file.iter_batches(columns=only and [only]):
                for column in batch.columns:
                    for number, value in enumerate(column, first):
                        yield number, _python_value(value, f"{source.name} row {number}")
                first += batch.num_rows
    except (OSError, pyarrow.ArrowException) as error:
        raise CometError(f"{source.name}: cannot be read as Parquet: {error}") from error


def _python_value(value: Any, where: str) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        raise CometError(f"{where}: byte {error.start + 1} is not UTF-8; write the file again as UTF-8") from None


READERS: dict[str, Callable[[TextFile], Iterator[str]]] = {
    ".txt": _lines_of_text,
    ".jsonl": _json_documents,
    ".parquet": _parquet_documents,
}
"""By file extension what yields the documents of a file, stripped; an empty one counts for nothing."""
