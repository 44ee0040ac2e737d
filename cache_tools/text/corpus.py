"""The corpus: tokenised to disk in one pass, then packed into rows from there, in bounded memory."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from cache_tools.errors import CometError, visible
from cache_tools.progress import show_progress
from cache_tools.signals import TOKEN_ARRAYS
from cache_tools.store.recipe import GROUPS, Recipe
from cache_tools.text.exclusion import FEWEST_WORDS, NgramIndex, contain_ngram, index_ngrams, words
from cache_tools.text.files.documents import documents
from cache_tools.text.files.items import items
from cache_tools.text.files.text_file import TextFile
from cache_tools.text.hub_text import HubText
from cache_tools.text.masking import Masking, content_keys, mask_rows
from cache_tools.text.packing import document_hash, is_validation, pack
from cache_tools.text.tokenizer import LONG, encode_texts, vocabulary_size

DOCUMENTS_AT_ONCE = 1024

DOCUMENT = np.dtype([("hash", "<u8"), ("tokens", "<i8")])


@dataclass(frozen=True)
class Spool:
    """The tokenised corpus on disk: the ids of all documents in one file, hash and token count of each in another."""

    ids: Path
    table: Path
    counts: NDArray[np.int64]  # [V] how often each id occurs
    excluded: int  # documents that share an n-gram with an evaluation item
    source_tokens: tuple[int, ...]  # of each source, 0 of those after the limit

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    @property
    def repeated(self) -> int:
        """The number of documents that repeat an earlier one word for word."""
        return self.document_count - len(np.unique(np.fromfile(self.table, dtype=DOCUMENT)["hash"]))

    @property
    def document_count(self) -> int:
        return self.table.stat().st_size // DOCUMENT.itemsize

    def documents(self) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """Yield (hash, ids) of each document in order."""
        ids = np.memmap(self.ids, dtype=np.int32, mode="r")
        start = 0
        for hash_, tokens in np.memmap(self.table, dtype=DOCUMENT, mode="r"):
            yield int(hash_), ids[start : start + tokens]
            start += int(tokens)


@dataclass(frozen=True)
class PackedRows:
    """The unmasked rows of a group, memory-mapped."""

    tokens: NDArray[np.int32]  # [R, L], padded
    length: NDArray[np.uint16]  # [R]


def excluded_ngrams(evaluation: tuple[TextFile, ...]) -> NgramIndex:
    """Index the n-grams that no document may share. Raises CometError for an evaluation file without words."""
    return index_ngrams(item for source in evaluation for item in _item_words(source))


def _item_words(source: TextFile) -> Iterator[list[str]]:
    """Yield the words of each item that has any. Print if those of a text are too short to exclude more than
    themselves."""
    count = short = 0
    for item in items(source):
        if found := words(item):
            count += 1
            short += len(found) < FEWEST_WORDS
            yield found
    if not count:
        raise CometError(f"--exclude {source.name}: expected evaluation items, found no words", exit_code=2)
    most_short = {".txt": count // 2, ".csv": count - 1, ".tsv": count - 1}  # fields of a table are also labels
    if short > most_short.get(source.format, count):
        tqdm.write(
            f"--exclude {visible(source.name)}: {short:,} of its {count:,} items have fewer than {FEWEST_WORDS} words, "
            "and exclude only documents of just these; if it has one token a line, call it .conll"
        )


def spool_documents(
    sources: tuple[TextFile | HubText, ...],
    evaluation: tuple[TextFile, ...],
    tokenizer: PreTrainedTokenizerFast,
    work: Path,
    limit: int | None,
) -> Spool:
    """Tokenise the sources in order, up to the document that reaches `limit` tokens, or all. A long document ends with
    the piece of it that reaches the limit.

    Documents that share an n-gram with an item of `evaluation` are excluded, and counted as far as the sources were
    used. Raises CometError if no token is left.
    """
    ngrams = excluded_ngrams(evaluation)
    counts = np.zeros(vocabulary_size(tokenizer), dtype=np.int64)
    id_path, table_path = work / "ids.bin", work / "documents.bin"
    source_tokens = [0] * len(sources)
    bar = show_progress(what="tokenise", unit="tok", unit_scale=True, total=limit)
    with bar, id_path.open("wb") as id_file, table_path.open("wb") as table_file:
        total = excluded = 0
        chunks = ((number, chunk) for number, source in enumerate(sources) for chunk in _chunks(documents(source)))
        for number, chunk in chunks:
            shared = contain_ngram(chunk, ngrams)
            kept = np.flatnonzero(~shared)
            encoded = encode_texts(tokenizer, [chunk[i] for i in kept], None if limit is None else limit - total)
            lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
            most = np.inf if limit is None else limit
            last = int(np.searchsorted(total + np.cumsum(lengths), most))  # the document that reaches the limit
            end = kept[last] if last < len(kept) else len(chunk)
            used = kept[: last + 1]
            ids = np.concatenate([np.zeros(0, dtype=np.int32), *encoded[: last + 1]])
            id_file.write(ids.tobytes())
            table = np.zeros(len(used), dtype=DOCUMENT)
            table["hash"] = np.array([document_hash(chunk[i]) for i in used], dtype=np.uint64)
            table["tokens"] = lengths[: last + 1]
            table_file.write(table.tobytes())
            counts += np.bincount(ids, minlength=len(counts))
            excluded += int(shared[:end].sum())
            total += len(ids)
            source_tokens[number] += len(ids)
            bar.update(len(ids))
            if limit is not None and total >= limit:
                break
    if not total:
        names = ", ".join(source.name for source in sources)
        what = f"of {excluded:,} documents --exclude leaves none" if excluded else "found no text"
        raise CometError(f"--text {names}: {what}; expected one document per line", exit_code=2)
    return Spool(id_path, table_path, counts, excluded, tuple(source_tokens))


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield the documents in lists that are short in documents and in characters, but for a single long one."""
    chunk: list[str] = []
    size = 0
    for text in texts:
        if chunk and size + len(text) > LONG:
            yield chunk
            chunk, size = [], 0
        chunk.append(text)
        size += len(text)
        if len(chunk) == DOCUMENTS_AT_ONCE or size > LONG:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def pack_groups(
    spool: Spool, share: float, seq_len: int, tokenizer: PreTrainedTokenizerFast, work: Path
) -> dict[str, PackedRows]:
    """Pack the rows of both groups, with the share `share` of the documents in validation.

    If no document falls into one of the groups, as with a few long ones, prints so and takes this share of all rows.
    Raises CometError if there is too little text for a row in each group.
    """
    names = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id)
    rows = {}
    for group in GROUPS:
        wanted = group == "validation"
        chosen = (ids for hash_, ids in spool.documents() if is_validation(hash_, share) == wanted)
        rows[group] = _pack(chosen, seq_len, *names, work / group)
    if all(len(packed.length) for packed in rows.values()):
        return rows
    every = _pack((ids for _, ids in spool.documents()), seq_len, *names, work / "rows")
    count = len(every.length)
    if count < 2:
        raise CometError(
            f"--text: {spool.total} tokens in all, which fit into one row of {seq_len} (--seq-len); expected at least "
            "two rows, one for training and one for validation; give more text, or a smaller --seq-len",
            exit_code=2,
        )
    period = max(2, round(1 / share))
    tqdm.write(
        f"validation: one row in {period}, since all documents would fall into one group; rows beside each other may "
        "be of one document"
    )
    held_out = np.arange(count) % period == min(period, count) - 1
    return {
        group: PackedRows(every.tokens[held_out == held], every.length[held_out == held])
        for group, held in (("train", False), ("validation", True))
    }


def _pack(documents: Iterable[NDArray[np.int32]], seq_len: int, bos: int, eos: int, pad: int, path: Path) -> PackedRows:
    """Write the rows of some documents to two files that begin with `path`."""
    token_path, length_path = path.with_suffix(".tokens.bin"), path.with_suffix(".lengths.bin")
    with token_path.open("wb") as token_file, length_path.open("wb") as length_file:
        for row in pack(documents, seq_len, bos, eos):
            padded = np.full(seq_len, pad, dtype=np.int32)
            padded[: len(row)] = row
            token_file.write(padded.tobytes())
            length_file.write(np.uint16(len(row)).tobytes())
    tokens = _mapped(token_path, np.dtype(np.int32)).reshape(-1, seq_len)
    return PackedRows(tokens, _mapped(length_path, np.dtype(np.uint16)))


def masked_shard(rows: PackedRows, masking: Masking, recipe: Recipe, group: str, shard: int) -> dict[str, NDArray]:
    """Return the token arrays of a shard, from the unmasked rows of its group, of which there must be at least one:
    those of all views, or those of one if all views are of the same rows."""
    tokens, length = rows.tokens, rows.length
    index = shard * recipe.rows_per_shard + np.arange(recipe.shard_rows(group, shard))
    view, number = index // (recipe.rows(group) // recipe.views), index % len(length)
    parts = []
    for one in np.unique(view):
        chosen = number[view == one]
        parts.append(mask_rows(tokens[chosen], length[chosen], int(one), masking))
    return {name: np.concatenate([getattr(part, name) for part in parts]) for name in TOKEN_ARRAYS}


def _mapped(path: Path, dtype: np.dtype) -> NDArray:
    """Map a file as a read-only array; return an empty array for an empty file, which cannot be mapped."""
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype=dtype)


def token_counts(rows: PackedRows, vocab_size: int) -> NDArray[np.int64]:
    """Return how often each id occurs in unmasked rows [vocab_size], padding included."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(rows.tokens), DOCUMENTS_AT_ONCE):
        counts += np.bincount(rows.tokens[start : start + DOCUMENTS_AT_ONCE].ravel(), minlength=vocab_size)
    return counts


def keys_sha256(rows: PackedRows) -> str:
    """Return SHA-256 over the content keys of unmasked rows, in their order."""
    digest = hashlib.sha256()
    _add_keys(digest, rows)
    return digest.hexdigest()


def rows_sha256(rows: dict[str, PackedRows]) -> str:
    """Return SHA-256 over the content keys of all unmasked rows, train first: the identity of the token stream."""
    digest = hashlib.sha256()
    for group in GROUPS:
        _add_keys(digest, rows[group])
        digest.update(group.encode())
    return digest.hexdigest()


def _add_keys(digest: "hashlib._Hash", rows: PackedRows) -> None:
    for start in range(0, len(rows.length), DOCUMENTS_AT_ONCE):
        part = slice(start, start + DOCUMENTS_AT_ONCE)
        digest.update(content_keys(rows.tokens[part], rows.length[part]).astype("<u8").tobytes())
