"""Rebuild tokens that are missing from a cache, or were never part of a copy, from its text.

The seal decides: a shard's tokens are right if they have its digest, whatever the files are called and whatever the
provenance records about them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from cache_tools.errors import CometError, visible
from cache_tools.signals import TOKEN_ARRAYS
from cache_tools.store.copy import put_tokens, staging_in
from cache_tools.store.layout import encode_chunk
from cache_tools.store.ledger import ShardKey, token_digest
from cache_tools.store.provenance import texts_read
from cache_tools.store.reader import Cache
from cache_tools.store.recipe import GROUPS
from cache_tools.text.corpus import PackedRows, Spool, masked_shard, pack_groups, spool_documents
from cache_tools.text.draws import mix
from cache_tools.text.files.text_file import TextFile
from cache_tools.text.hub_text import HubText
from cache_tools.text.masking import Masking, content_keys
from cache_tools.text.packing import validation_share

Sources = tuple[TextFile | HubText, ...]
MOST_NAMED = 5
SHOWN_TOKENS, SHOWN_CHARACTERS = 24, 60  # of a row that differs


def _has_tokens(cache: Cache, key: ShardKey) -> bool:
    """Return whether all token files of a shard exist."""
    specs = cache.specs[key.group]
    return all((cache.root / specs[name].chunk_path(key.shard)).is_file() for name in TOKEN_ARRAYS)


def restore_lost(
    cache: Cache,
    shards: list[ShardKey],
    sources: Sources,
    evaluation: tuple[TextFile, ...],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Rebuild missing tokens of these uncommitted shards from the text.

    Raises CometError if the text cannot be read or gives other tokens than the sealed ones, or the disk refuses.
    """
    lost = [key for key in shards if not _has_tokens(cache, key)]
    if not lost:
        return
    tqdm.write(f"tokens missing in {len(lost)} of {len(cache.extent.keys())} shards; rebuilding them from the text")
    with staging_in(cache.root) as work:
        rebuilt = rebuild_tokens(cache, sources, evaluation, tokenizer, work)
        for key in lost:
            put_tokens(cache, *key, rebuilt.files(key))


def rebuild_tokens(
    cache: Cache, sources: Sources, evaluation: tuple[TextFile, ...], tokenizer: PreTrainedTokenizerFast, work: Path
) -> "RebuiltTokens":
    """Tokenise and pack a text as the cache's own was, into files in the folder `work`.

    Raises CometError if the text cannot be read or gives another number of rows, or views continue one another.
    """
    recipe, provenance = cache.recipe, cache.provenance
    if recipe.continued_views > 1:
        raise CometError(
            f"{cache.root}: its views continue one another (--continue-views), so its text alone does not give its "
            "tokens; copy them again from a whole copy, or build the cache again"
        )
    whole = len(sources) == len(provenance.get("text", []))
    mismatches = _source_mismatches(sources, provenance.get("text", []) if whole else texts_read(provenance), "--text")
    mismatches += _source_mismatches(evaluation, provenance.get("excluded", []), "--exclude")
    for mismatch in mismatches:
        tqdm.write(f"note: {visible(mismatch)}; the tokens decide whether it is the same text")
    room = sum(recipe.rows(group) // recipe.views for group in GROUPS) * (recipe.seq_len - 2)
    limit = min(room, provenance.get("max_tokens") or room)  # tokens beyond do not fit into the rows
    spool = spool_documents(sources, evaluation, tokenizer, work, limit)
    mismatches += _count_mismatches(spool, provenance)
    share = validation_share(recipe.mask_prob * recipe.views * spool.total)
    rows = pack_groups(spool, share, recipe.seq_len, tokenizer, work)
    masking = Masking(recipe.mask_prob, recipe.seed, recipe.mask_id, recipe.special_ids, cache.vocabulary.id)
    rebuilt = RebuiltTokens(cache, rows, masking, tokenizer, tuple(mismatches))
    for group in GROUPS:
        found, expected = len(rows[group].length), recipe.rows(group) // recipe.views
        if found * recipe.views != recipe.rows(group):
            raise rebuilt.error(f"it gives {found:,} rows of {group}, the cache has {expected:,}")
    return rebuilt


@dataclass(frozen=True)
class RebuiltTokens:
    """The unmasked rows of a text, and its mismatches with the provenance of the cache."""

    cache: Cache
    rows: dict[str, PackedRows]
    masking: Masking
    tokenizer: PreTrainedTokenizerFast
    mismatches: tuple[str, ...]

    def files(self, key: ShardKey) -> dict[str, bytes]:
        """Return the files of a shard's token arrays, as in the cache.

        Raises CometError, naming the first row that differs, if they are not the sealed tokens, and if the files are
        not those of the commit record.
        """
        cache, specs = self.cache, self.cache.specs[key.group]
        arrays = masked_shard(self.rows[key.group], self.masking, cache.recipe, *key)
        has_shapes = all(arrays[name].shape[1:] == specs[name].shape[1:] for name in TOKEN_ARRAYS)
        if not has_shapes or token_digest(arrays) != cache.seal.token_digests[key.group][key.shard]:
            forged = ", though every row has its key: the cache is damaged or forged" if self.has_keys else ""
            raise self.error(f"those of shard {key} are not the sealed ones{forged}")
        files = {name: encode_chunk(specs[name], arrays[name]) for name in TOKEN_ARRAYS}
        record = cache.record(*key)
        if record is not None and not all(record.files[name].matches(files[name]) for name in TOKEN_ARRAYS):
            raise CometError(
                f"{cache.root}: the tokens of shard {key} are right, but their files are not those of its commit "
                f"record: they were encoded by another version of numcodecs ("
                f"{record.numerics.get('numcodecs', 'not recorded')}; here {numcodecs.__version__}), or the record is "
                "forged; install that version and run the same command again. Nothing was changed"
            )
        return files

    def error(self, message: str) -> CometError:
        """Return the error of a text that is not the cache's: the first row that differs, else `message`."""
        reasons = "; ".join([self.first_difference() or message, *self.mismatches])
        return CometError(f"{self.cache.root}: the text does not give its tokens: {reasons}. Nothing was changed")

    @property
    def has_keys(self) -> bool:
        return "row_key" in self.cache.extent.arrays

    def first_difference(self) -> str | None:
        """Return the first row whose key is not the cache's; None if the cache has no keys or all are equal."""
        cache, recipe = self.cache, self.cache.recipe
        if not self.has_keys:
            return None
        for group, shard in cache.records():
            tokens, length = self.rows[group].tokens, self.rows[group].length
            stored = cache.read_shard(group, shard, ("row_key",))["row_key"]  # [R]
            row = shard * recipe.rows_per_shard + np.arange(len(stored))
            view, number = np.divmod(row, max(recipe.rows(group) // recipe.views, 1))
            exists = number < len(length)
            differs = ~exists
            keys = mix(content_keys(tokens[number[exists]], length[number[exists]]), view[exists].astype(np.uint64))
            differs[exists] = keys != stored[exists]
            if differs.any():
                first = int(np.argmax(differs))
                where = f"row {row[first]:,} of {group} (shard {shard}) is the first that differs"
                if not exists[first]:
                    return f"{where}; the text ends before it"
                start = self.tokenizer.decode(tokens[number[first]][:SHOWN_TOKENS].tolist(), skip_special_tokens=True)
                return f"{where}; here it begins {str(start)[:SHOWN_CHARACTERS]!r}"
        return None


def _source_mismatches(given: Sequence[TextFile | HubText], recorded: list[dict[str, Any]], option: str) -> list[str]:
    """Return the differences of files or data sets from those that a cache records, a line each; names may differ."""
    records = [source.record() for source in given]
    if not recorded:
        return [f"{option}: the cache was made without any"] if records and option == "--exclude" else []
    names = ", ".join(str(r.get("name")) for r in recorded[:MOST_NAMED]) + (", …" if len(recorded) > MOST_NAMED else "")
    if len(records) != len(recorded):
        return [f"{option}: {len(records)} files, but the cache was made with {len(recorded)} ({names})"]
    found, expected = [_identity(r) for r in records], [_identity(r) for r in recorded]
    if found != expected and sorted(found) == sorted(expected):
        return [f"{option}: these files in another order; the cache was made with {names}"]
    return [
        f"{r['name']}: {'sha256' if 'sha256' in r else 'revision'} differs from the one the cache was made from"
        for r, a, b in zip(records, found, expected, strict=True)
        if a != b
    ][:MOST_NAMED]


def _identity(record: dict[str, Any]) -> str:
    """Return the identity of a file or data set: its hash, or its name and revision."""
    return str(record.get("sha256") or (record.get("name"), record.get("revision")))


def _count_mismatches(spool: Spool, provenance: dict[str, Any]) -> list[str]:
    documents, tokens = provenance.get("documents"), provenance.get("text_tokens")
    if documents is None or tokens is None or (documents, tokens) == (spool.document_count, spool.total):
        return []
    return [
        f"{spool.document_count:,} documents of {spool.total:,} tokens, "
        f"the cache was made from {documents:,} documents of {tokens:,} tokens"
    ]
