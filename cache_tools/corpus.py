"""The corpus on its way to rows: tokenised to disk in one pass, packed from there, in bounded memory."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from cache_tools.errors import CometError
from cache_tools.rows import content_keys, document_hash, is_validation, pack, validation_share
from cache_tools.settings import BuildSettings
from cache_tools.store.recipe import GROUPS
from cache_tools.teacher.tokenizer import encode_texts
from cache_tools.text import Source, documents, find_sources

DOCUMENTS_AT_ONCE = 1024
DOCUMENT = np.dtype([("hash", "<u8"), ("tokens", "<i8")])


@dataclass(frozen=True)
class Spool:
    """The tokenised corpus on disk: all ids in a row, and beside them hash and token count of each document."""

    ids: Path
    table: Path
    counts: NDArray[np.int64]  # [V] how often each id occurs

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    @property
    def document_count(self) -> int:
        return self.table.stat().st_size // DOCUMENT.itemsize

    def documents(self) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """(hash, ids) of each document in order."""
        ids = np.memmap(self.ids, dtype=np.int32, mode="r")
        start = 0
        for hash_, tokens in np.memmap(self.table, dtype=DOCUMENT, mode="r"):
            yield int(hash_), ids[start : start + tokens]
            start += int(tokens)


@dataclass(frozen=True)
class PackedRows:
    """The unmasked rows of a group, mapped from disk."""

    tokens: NDArray[np.int32]  # [R, L], padded
    length: NDArray[np.uint16]  # [R]


def excluded_hashes(path: Path | None) -> frozenset[int]:
    """Hashes of the documents that must not enter the cache, such as evaluation items."""
    if path is None:
        return frozenset()
    return frozenset(document_hash(text) for source in find_sources((str(path),)) for text in documents(source))


def excluded_sha256(path: Path | None) -> str:
    """SHA-256 over the sorted hashes of the excluded documents, so that a resumed build excludes the same."""
    hashes = np.array(sorted(excluded_hashes(path)), dtype="<u8")
    return hashlib.sha256(hashes.tobytes()).hexdigest()


def spool_documents(
    settings: BuildSettings, sources: tuple[Source, ...], tokenizer: PreTrainedTokenizerFast, work: Path
) -> Spool:
    """Tokenises the sources in order, up to the document that reaches `max_tokens`.

    Raises CometError when they hold no token.
    """
    counts = np.zeros(len(tokenizer), dtype=np.int64)
    spool = Spool(work / "ids.bin", work / "documents.bin", counts)
    excluded = excluded_hashes(settings.exclude)
    texts = (text for source in sources for text in documents(source))
    wanted = ((h, text) for text in texts if (h := document_hash(text)) not in excluded)
    limit = settings.max_tokens or np.inf
    progress = tqdm(desc="tokenise", unit="tok", unit_scale=True, total=settings.max_tokens, disable=None)
    with progress, spool.ids.open("wb") as id_file, spool.table.open("wb") as table_file:
        total = 0
        while total < limit and (chunk := list(islice(wanted, DOCUMENTS_AT_ONCE))):
            encoded = encode_texts(tokenizer, [text for _, text in chunk])
            lengths = np.array([len(ids) for ids in encoded])
            used = int(np.searchsorted(total + np.cumsum(lengths), limit)) + 1  # the document that reaches it is in
            ids = np.concatenate(encoded[:used])
            hashes = np.array([h for h, _ in chunk[:used]], dtype=np.uint64)
            id_file.write(ids.tobytes())
            table = np.zeros(len(hashes), dtype=DOCUMENT)
            table["hash"], table["tokens"] = hashes, lengths[:used]
            table_file.write(table.tobytes())
            counts += np.bincount(ids, minlength=len(counts))
            total += len(ids)
            progress.update(len(ids))
    if not total:
        names = ", ".join(source.name for source in sources)
        raise CometError(
            f"--text {names}: no text in it (after --exclude); expected one document per line", exit_code=2
        )
    return spool


def pack_groups(
    settings: BuildSettings, spool: Spool, tokenizer: PreTrainedTokenizerFast, work: Path
) -> dict[str, PackedRows]:
    """The rows of both groups. Raises CometError when so little text is left that there is nothing to train on."""
    share = validation_share(settings.mask_prob * settings.views * spool.total)
    rows = {}
    for group in GROUPS:
        wanted = group == "validation"
        chosen = (ids for hash_, ids in spool.documents() if is_validation(hash_, share) == wanted)
        token_path, length_path = work / f"{group}.tokens.bin", work / f"{group}.lengths.bin"
        with token_path.open("wb") as token_file, length_path.open("wb") as length_file:
            for row in pack(chosen, settings.seq_len, tokenizer.cls_token_id, tokenizer.sep_token_id):
                padded = np.full(settings.seq_len, tokenizer.pad_token_id, dtype=np.int32)
                padded[: len(row)] = row
                token_file.write(padded.tobytes())
                length_file.write(np.uint16(len(row)).tobytes())
        tokens = mapped(token_path, np.dtype(np.int32)).reshape(-1, settings.seq_len)
        rows[group] = PackedRows(tokens, mapped(length_path, np.dtype(np.uint16)))
    if not len(rows["train"].length):
        raise CometError(f"--text: only {spool.total} tokens, too few for a training row; give more text", exit_code=2)
    return rows


def mapped(path: Path, dtype: np.dtype) -> NDArray:
    """A file as a read-only array; an empty file, which cannot be mapped, as an empty one."""
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype=dtype)


def rows_sha256(rows: dict[str, PackedRows]) -> str:
    """SHA-256 over the content keys of all unmasked rows, train first: the identity of the token stream."""
    digest = hashlib.sha256()
    for group in GROUPS:
        tokens, length = rows[group].tokens, rows[group].length
        for start in range(0, len(length), DOCUMENTS_AT_ONCE):
            part = slice(start, start + DOCUMENTS_AT_ONCE)
            digest.update(content_keys(tokens[part], length[part]).astype("<u8").tobytes())
        digest.update(group.encode())
    return digest.hexdigest()
