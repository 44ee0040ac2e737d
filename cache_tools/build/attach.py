"""Re-attach the text of a detached cache from the receiver's own copy of it, verified by the seal.

All shards are staged and compared before the first file gets its name; the extent comes last. So a cache holds its
whole text or is detached. The next call compares and uses the files that a killed one left.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from cache_tools.build.resolve import resolve_text
from cache_tools.build.restore import rebuild_tokens
from cache_tools.errors import CometError
from cache_tools.interrupts import stop_on_signal
from cache_tools.progress import show_progress
from cache_tools.signals import TOKEN_ARRAYS
from cache_tools.store.copy import staging_in
from cache_tools.store.ledger import EXTENT, ShardKey, ShardRecord, read_extent, with_tokens
from cache_tools.store.reader import Cache, open_cache
from cache_tools.store.records import inside, read_bounded, rename_durably, with_checksum, write_durably
from cache_tools.store.staging import STAGING, exclusive, remove_abandoned
from cache_tools.text.files.text_file import ITEM_FORMATS
from cache_tools.text.hub_text import HubText
from cache_tools.text.sources import find_sources, find_texts
from cache_tools.text.tokenizer import load_cache_tokenizer


def attach(cache: Cache, text: tuple[str, ...], exclude: tuple[str, ...] = ()) -> Cache:
    """Rebuild the tokens of all committed shards of a detached cache from `text`, given as for a build, without the
    documents that share words with `exclude`; all other settings follow from recipe and provenance.

    Return the cache, which then has the id of the copy that was never detached.

    Raises CometError, and changes nothing, if the text cannot be read or does not give the sealed tokens, or if files
    are in the way; KeyboardInterrupt, likewise, at SIGINT and SIGTERM.
    """
    if cache.extent == with_tokens(cache.extent, cache.recipe):
        remove_abandoned(cache.root, STAGING)  # a call killed after its last step may have left its folder
        return cache
    texts, evaluation = find_texts(text), find_sources(exclude, "--exclude", ITEM_FORMATS)
    records = cache.records()
    if not records:
        raise CometError(f"{cache.root}: holds no shard to attach a text to; pull or merge some first")
    left = _files_left(cache, records)
    tokenizer = load_cache_tokenizer(cache)
    sources = tuple(resolve_text(t, cache.provenance) if isinstance(t, HubText) else t for t in texts)
    stopped = f"{cache.root}: stopped; it is detached as before, run the same command again"
    with stop_on_signal(None, stopped), staging_in(cache.root) as work:
        rebuilt = rebuild_tokens(cache, sources, evaluation, tokenizer, work)
        staged = []
        for key in show_progress(list(records), "attach", "shard"):
            files = rebuilt.files(key)
            for name, path in _lacking_files(cache, key).items():
                if path not in left:
                    write_durably(work / path, files[name])
                    staged.append(path)
        for path in staged:
            rename_durably(work / path, inside(cache.root, path))
        _widen_extent(cache, work)
    return open_cache(cache.root)


def _lacking_files(cache: Cache, key: ShardKey) -> dict[str, str]:
    """Return the shard's files of token arrays that this copy lacks, relative to the cache, by array."""
    specs = cache.specs[key.group]
    return {name: specs[name].chunk_path(key.shard) for name in TOKEN_ARRAYS if name not in cache.extent.arrays}


def _files_left(cache: Cache, records: Mapping[ShardKey, ShardRecord]) -> set[str]:
    """Return those of the lacking files that a killed attach has left.

    Raises CometError if another file than the ledger's is in the way: nothing is ever overwritten.
    """
    left = set()
    for key, record in records.items():
        for name, path in _lacking_files(cache, key).items():
            file = inside(cache.root, path)
            if not os.path.lexists(file):
                continue
            if not record.files[name].matches(read_bounded(file, record.files[name].size)):
                raise CometError(
                    f"{file}: in the way: not the file that the ledger describes, and nothing is overwritten; remove "
                    "it and run the same command again"
                )
            left.add(path)
    return left


def _widen_extent(cache: Cache, work: Path) -> None:
    """Add the tokens to the extent of this copy. Raises CometError if another process has changed the extent."""
    wanted = with_tokens(cache.extent, cache.recipe)
    write_durably(work / EXTENT, with_checksum(wanted.to_json()))
    with exclusive(cache.root):
        if read_extent(cache.root, cache.recipe, tuple(cache.specs["train"])) not in (cache.extent, wanted):
            raise CometError(f"{cache.root}: its extent has changed meanwhile; run the same command again")
        rename_durably(work / EXTENT, inside(cache.root, EXTENT))
