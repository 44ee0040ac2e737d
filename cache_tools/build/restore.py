"""Tokens that are gone from a cache, or were never part of a copy, made again from the text they came from.

What decides is the seal: a shard's tokens are right if they have its digest, whatever the files are called that the
text came in, and whatever is said of them.
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
from cache_tools.store.reader import Cache
from cache_tools.store.recipe import GROUPS
from cache_tools.text.corpus import PackedRows, Spool, masked_shard, pack_groups, spool_documents
from cache_tools.text.hub_text import HubText
from cache_tools.text.masking import Masking, content_keys, mix
from cache_tools.text.packing import validation_share
from cache_tools.text.sources import TextFile

Sources = tuple[TextFile | HubText, ...]
MOST_NAMED = 5
SHOWN_TOKENS, SHOWN_CHARACTERS = 24, 60  # of a row that differs


def lost_tokens(cache: Cache, shards: list[ShardKey]) -> list[ShardKey]:
    """Those of these shards of which a file of tokens is not there."""

    def is_there(group: str, shard: int) -> bool:
        specs = cache.specs[group]
        return all((cache.root / specs[name].chunk_path(shard)).is_file() for name in TOKEN_ARRAYS)

    return [key for key in shards if not is_there(*key)]


def restore_lost(
    cache: Cache,
    shards: list[ShardKey],
    sources: Sources,
    evaluation: tuple[TextFile, ...],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Reads the text once more for those of these shards, which are not committed, whose tokens are gone.

    Raises CometError when the text cannot be read or gives other tokens than the sealed ones, or the disk refuses.
    """
    if not (lost := lost_tokens(cache, shards)):
        return
    tqdm.write(f"the tokens of {len(lost)} shards are not there; making them again from the text")
    with staging_in(cache.root) as work:
        text = rebuild_tokens(cache, sources, evaluation, tokenizer, work)
        for group, shard in lost:
            put_tokens(cache, group, shard, text.files(group, shard))


def rebuild_tokens(
    cache: Cache, sources: Sources, evaluation: tuple[TextFile, ...], tokenizer: PreTrainedTokenizerFast, work: Path
) -> "RebuiltTokens":
    """Tokenises and packs a text as the cache's own was, into files in the folder `work`.

    Raises CometError for text that cannot be read, and when it does not give as many rows.
    """
    recipe, made_from = cache.recipe, cache.provenance
    doubts = source_doubts(sources, made_from.get("text", []), "--text")
    doubts += source_doubts(evaluation, made_from.get("excluded", []), "--exclude")
    for doubt in doubts:
        tqdm.write(f"note: {visible(doubt)}; whether it is the text all the same, its tokens will say")
    room = sum(recipe.rows(group) // recipe.views for group in GROUPS) * (recipe.seq_len - 2)
    limit = min(room, made_from.get("max_tokens") or room)  # what is beyond has no place in the rows
    spool = spool_documents(sources, evaluation, tokenizer, work, limit)
    doubts += count_doubts(spool, made_from)
    share = validation_share(recipe.mask_prob * recipe.views * spool.total)
    rows = pack_groups(spool, share, recipe.seq_len, tokenizer, work)
    masking = Masking(recipe.mask_prob, recipe.seed, recipe.mask_id, recipe.special_ids, cache.vocabulary.id)
    text = RebuiltTokens(cache, rows, masking, tokenizer, tuple(doubts))
    for group in GROUPS:
        if len(rows[group].length) * recipe.views != recipe.rows(group):
            raise text.unlike(
                f"it gives {len(rows[group].length):,} rows of {group}, the cache has "
                f"{recipe.rows(group) // recipe.views:,}"
            )
    return text


@dataclass(frozen=True)
class RebuiltTokens:
    """The unmasked rows of a text that is said to be a cache's, and what speaks against it."""

    cache: Cache
    rows: dict[str, PackedRows]
    masking: Masking
    tokenizer: PreTrainedTokenizerFast
    doubts: tuple[str, ...]

    def files(self, group: str, shard: int) -> dict[str, bytes]:
        """The token arrays of a shard as the files of the cache.

        Raises CometError when they are not the sealed ones, naming the first row that differs, and when the files are
        not those of the commit record.
        """
        cache, specs = self.cache, self.cache.specs[group]
        arrays = masked_shard(self.rows[group], self.masking, cache.recipe, group, shard)
        fitting = all(arrays[name].shape[1:] == specs[name].shape[1:] for name in TOKEN_ARRAYS)
        if not fitting or token_digest(arrays) != cache.seal.token_digests[group][shard]:
            forged = ", though every row has its key: the cache is damaged or forged" * self.has_keys
            raise self.unlike(f"those of shard {group} {shard} are not the sealed ones{forged}")
        files = {name: encode_chunk(specs[name], arrays[name]) for name in TOKEN_ARRAYS}
        record = cache.record(group, shard)
        if record is not None and not all(record.files[name].matches(files[name]) for name in TOKEN_ARRAYS):
            raise CometError(
                f"{cache.root}: the tokens of shard {group} {shard} come out right, but not as the very files of its "
                f"commit record: they were encoded by another version of numcodecs ("
                f"{record.numerics.get('numcodecs', 'not recorded')}; here {numcodecs.__version__}), or the record is "
                "forged; install that version and run the same command again. Nothing was changed"
            )
        return files

    def unlike(self, otherwise: str) -> CometError:
        """The error that says in what this is not the text of the cache: the first row that differs, if keys tell."""
        found = [self.first_difference() or otherwise, *self.doubts]
        return CometError(
            f"{self.cache.root}: the text does not give its tokens: {'; '.join(found)}. Nothing was changed"
        )

    @property
    def has_keys(self) -> bool:
        return "row_key" in self.cache.extent.arrays

    def first_difference(self) -> str | None:
        """The first row whose key is not that of the cache; None where the cache has no keys, or none differs."""
        cache, recipe = self.cache, self.cache.recipe
        if not self.has_keys:
            return None
        for group, shard in committed_shards(cache):
            tokens, length = self.rows[group].tokens, self.rows[group].length
            stored = cache.read_shard(group, shard, ("row_key",))["row_key"]  # [R]
            row = shard * recipe.rows_per_shard + np.arange(len(stored))
            view, number = np.divmod(row, max(recipe.rows(group) // recipe.views, 1))
            there = number < len(length)
            differs = ~there
            keys = mix(content_keys(tokens[number[there]], length[number[there]]), view[there].astype(np.uint64))
            differs[there] = keys != stored[there]
            if differs.any():
                first = int(np.argmax(differs))
                where = f"row {row[first]:,} of {group} (shard {shard}) is the first that differs"
                begins = f"here it begins {self.shown(group, number[first])!r}" if there[first] else "it ends before"
                return f"{where}; {begins}"
        return None

    def shown(self, group: str, number: int) -> str:
        """How a row begins."""
        ids = self.rows[group].tokens[number][:SHOWN_TOKENS].tolist()
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))[:SHOWN_CHARACTERS]


def committed_shards(cache: Cache) -> list[ShardKey]:
    """The shards of the extent that this copy holds."""
    return [key for key in cache.extent.keys() if cache.record(*key) is not None]


def source_doubts(given: Sequence[TextFile | HubText], recorded: list[dict[str, Any]], option: str) -> list[str]:
    """In what some files, or data sets, are not those that a cache records, a line each; names alone do not matter."""
    mine, theirs = [one.record() for one in given], recorded
    if not theirs:
        return [f"{option}: the cache was made without any"] if mine and option == "--exclude" else []
    names = ", ".join(str(one.get("name")) for one in theirs[:MOST_NAMED]) + ", …" * (len(theirs) > MOST_NAMED)
    if len(mine) != len(theirs):
        return [f"{option}: {len(mine)} files, but the cache was made with {len(theirs)} ({names})"]
    here, there = [identity(one) for one in mine], [identity(one) for one in theirs]
    if here != there and sorted(here) == sorted(there):
        return [f"{option}: these files in another order; the cache was made with {names}"]
    return [
        f"{one['name']}: {'sha256' if 'sha256' in one else 'revision'} differs from the one the cache was made from"
        for one, a, b in zip(mine, here, there, strict=True)
        if a != b
    ][:MOST_NAMED]


def identity(record: dict[str, Any]) -> str:
    """What a file or a data set is recognised by."""
    return str(record.get("sha256") or (record.get("name"), record.get("revision")))


def count_doubts(spool: Spool, made_from: dict[str, Any]) -> list[str]:
    found = {"documents": spool.document_count, "text_tokens": spool.total}
    expected = {name: made_from.get(name) for name in found}
    if None in expected.values() or found == expected:
        return []
    said, said_there = (f"{x['documents']:,} documents of {x['text_tokens']:,} tokens" for x in (found, expected))
    return [f"{said}, the cache was made from {said_there}"]
