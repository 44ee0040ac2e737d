"""A detached cache gets its text again, from the receiver's own copy of it, and the seal says whether it is the text.

All shards are made aside and compared before the first file gets its name, and the extent comes last. So a cache holds
its text whole or is detached; what a killed call leaves is compared and used by the next.
"""

import os
from pathlib import Path

from tqdm import tqdm

from cache_tools.build.resolve import resolve_text
from cache_tools.build.restore import committed_shards, rebuild_tokens
from cache_tools.errors import CometError
from cache_tools.interrupts import stop_on_signal
from cache_tools.signals import TOKEN_ARRAYS
from cache_tools.store.copy import rename_into, staging_in
from cache_tools.store.layout import group_arrays
from cache_tools.store.ledger import EXTENT, ShardKey, read_extent, with_tokens
from cache_tools.store.reader import Cache, open_cache
from cache_tools.store.records import inside, read_bounded, with_checksum, write_durably
from cache_tools.store.staging import STAGING, remove_abandoned
from cache_tools.text.hub_text import HubText
from cache_tools.text.sources import ITEM_FORMATS, find_sources, find_texts
from cache_tools.text.tokenizer import load_cache_tokenizer


def attach(cache: Cache, text: tuple[str, ...], exclude: tuple[str, ...] = ()) -> Cache:
    """Puts the text into a detached cache: the tokens of all committed shards, made again from `text` as a build takes
    it, without the documents that share words with `exclude`. Everything else is as recipe and provenance say.

    Returns the cache, whose id is then that of the copy that never lacked its text.

    Raises CometError, and changes nothing, for text that cannot be read or does not give the sealed tokens, and for
    files in the way; and at SIGINT or SIGTERM.
    """
    if cache.extent == with_tokens(cache.extent, cache.recipe):
        remove_abandoned(cache.root, STAGING)  # a call that was killed after its last step may have left its folder
        return cache
    keys = committed_shards(cache)
    if not keys:
        raise CometError(f"{cache.root}: no shard is there to attach a text to; pull or merge some first")
    there = files_there(cache, keys)
    tokenizer = load_cache_tokenizer(cache)
    texts = find_texts(text)
    sources = tuple(resolve_text(one, cache.provenance) if isinstance(one, HubText) else one for one in texts)
    evaluation = find_sources(exclude, "--exclude", ITEM_FORMATS)
    stopped = f"{cache.root}: stopped; it is detached as before, run the same command again"
    with stop_on_signal(None, stopped), staging_in(cache.root) as work:
        again = rebuild_tokens(cache, sources, evaluation, tokenizer, work)
        staged = []
        for group, shard in tqdm(keys, "attach", unit="shard", disable=None):
            files = again.files(group, shard)
            for name, path in lacking_files(cache, group, shard).items():
                if path not in there:
                    write_durably(work / path, files[name])
                    staged.append(path)
        for path in staged:
            rename_into(work / path, inside(cache.root, path))
        widen_extent(cache, work)
    return open_cache(cache.root)


def lacking_files(cache: Cache, group: str, shard: int) -> dict[str, str]:
    """The token arrays that this copy is without, and where their files of a shard belong."""
    specs = cache.specs[group]
    return {name: specs[name].chunk_path(shard) for name in TOKEN_ARRAYS if name not in cache.extent.arrays}


def files_there(cache: Cache, keys: list[ShardKey]) -> set[str]:
    """Which of the lacking files an attach that was killed has left.

    Raises CometError for files in their place that are not those of the ledger: nothing is ever overwritten.
    """
    found = set()
    for group, shard in keys:
        record = cache.record(group, shard)
        for name, path in lacking_files(cache, group, shard).items():
            file = inside(cache.root, path)
            if record is None or not os.path.lexists(file):
                continue
            if not record.files[name].matches(read_bounded(file, record.files[name].size)):
                raise CometError(
                    f"{file}: in the way: not the file that the ledger describes, and nothing is overwritten; remove "
                    "it and run the same command again"
                )
            found.add(path)
    return found


def widen_extent(cache: Cache, work: Path) -> None:
    """Says that the tokens are part of this copy. Raises CometError when somebody else has changed what it holds."""
    wanted = with_tokens(cache.extent, cache.recipe)
    if read_extent(cache.root, cache.recipe, tuple(group_arrays(cache.recipe, "train"))) not in (cache.extent, wanted):
        raise CometError(f"{cache.root}: what it holds has changed meanwhile; run the same command again")
    write_durably(work / EXTENT, with_checksum(wanted.to_json()))
    rename_into(work / EXTENT, inside(cache.root, EXTENT))
