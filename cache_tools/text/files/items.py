"""The items of evaluation files, which may also be tables (`.tsv`, `.csv`) and CoNLL files, one token with its label a
line.
"""

import csv
import re
from collections.abc import Callable, Iterator

from cache_tools.errors import CometError
from cache_tools.text.files.documents import json_records, parquet_values, whole_text
from cache_tools.text.files.text_file import TextFile, lines_of

LABEL = re.compile(r"[A-Z]+(-[A-Z]+)?")  # `VERB`, `B-LOC`
NAME_LABEL = re.compile(r"O|[BIESLUbieslu]-\w+")  # `O`, `B-LOC`, `b-loc`


def items(source: TextFile) -> Iterator[str]:
    """Yield the items of an evaluation file in order; some may have no words.

    Every field of a table or record is an item: each set has its text in another one, and labels, numbers and names of
    columns are too short to match any document but one of just that. Quotes in a `.tsv` are ordinary characters, as in
    AfriSenti.
    Raises CometError as `documents` does.
    """
    return ITEM_READERS[source.format](source)


def _csv_fields(source: TextFile) -> Iterator[str]:
    _require_separator(source, ",", ";\t")
    rows = csv.reader(line for _, line in lines_of(source))
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
    line = next((line for _, line in lines_of(source)), "")
    if separator not in line and any(other in line for other in others):
        raise CometError(
            f"{source.name} line 1: expected commas between the fields of a .csv, tabs between those of a .tsv, found "
            f"{line.strip()[:80]!r}; save it so, or as .txt if it has one text a line"
        )


def _is_conll(source: TextFile) -> bool:
    """Return whether every non-blank line is a token and its label, as in the `.txt` of MasakhaNER and MasakhaPOS, or
    has more columns and ends in the label of a name."""
    return all(_is_labelled(line.split()) for _, line in lines_of(source) if line.strip())


def _is_labelled(columns: list[str]) -> bool:
    label = columns[-1]
    return len(columns) > 1 and bool(NAME_LABEL.fullmatch(label) or (len(columns) == 2 and LABEL.fullmatch(label)))


def _conll_sentences(source: TextFile) -> Iterator[str]:
    """Yield the tokens (first column) of each sentence, joined by spaces; blank lines separate sentences."""
    tokens: list[str] = []
    for _, line in lines_of(source):
        if line.strip():
            tokens.append(line.split(maxsplit=1)[0])
        else:
            yield " ".join(tokens)
            tokens = []
    yield " ".join(tokens)


def _text_items(source: TextFile) -> Iterator[str]:
    return _conll_sentences(source) if _is_conll(source) else _lines_and_fields(source)


def _lines_and_fields(source: TextFile) -> Iterator[str]:
    """Yield each line, and the fields of one with tabs, which may be a text and its label."""
    for _, line in lines_of(source):
        text = line.strip()
        yield text
        if "\t" in text:
            yield from text.split("\t")


def _tab_separated_fields(source: TextFile) -> Iterator[str]:
    _require_separator(source, "\t", ",;")
    for _, line in lines_of(source):
        yield from line.split("\t")


def _json_strings(source: TextFile) -> Iterator[str]:
    for number, _, record in json_records(source):
        for text in _strings(record):
            yield whole_text(text, source, number)


def _parquet_strings(source: TextFile) -> Iterator[str]:
    for _, value in parquet_values(source):
        yield from _strings(value)


def _strings(value: object) -> Iterator[str]:
    """Yield every string in a value; those of a list also joined by spaces, since they may be words of a sentence."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, list):
        yield " ".join(one for one in value if isinstance(one, str))
        for one in value:
            yield from _strings(one)


ITEM_READERS: dict[str, Callable[[TextFile], Iterator[str]]] = {
    ".txt": _text_items,
    ".jsonl": _json_strings,
    ".parquet": _parquet_strings,
    ".tsv": _tab_separated_fields,
    ".csv": _csv_fields,
    ".conll": _conll_sentences,
}
"""By file extension what yields the items of an evaluation file; some may have no words."""
