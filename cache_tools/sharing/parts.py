"""Parts of a cache: the shards and arrays of a smaller copy, with or without its text."""

import threading
from collections.abc import Iterable
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

from cache_tools.errors import CometError
from cache_tools.settings import Part
from cache_tools.sharing.retry import RetryPolicy, map_concurrently, retry
from cache_tools.signals import FAMILIES, TEXT_ARRAYS, TOKEN_ARRAYS, family_of
from cache_tools.store.copy import ranges
from cache_tools.store.ledger import Extent, Seal, ShardKey, ShardRecord, without_text
from cache_tools.store.reader import Cache
from cache_tools.store.recipe import GROUPS, Recipe

if TYPE_CHECKING:
    from cache_tools.sharing.locations.location import Location

NOT_ANONYMOUS = (
    "A cache without its text is not anonymous: it holds the likely words at each masked position, with the position; "
    "which words occur, and how often; and hashes with which anyone who has a text can prove that it is in it."
)


def part_extent(
    recipe: Recipe, seal: Seal, extent: Extent, records: Iterable[ShardRecord], part: Part, where: object
) -> Extent:
    """Return the extent of a part of `extent`: all committed validation shards and the first committed training shards.

    At least one training shard is in it. `records` are the commit records within `extent`; `where` is for messages.
    Raises CometError if there is no such part.
    """
    families = ("tokens", *(FAMILIES if part.signals == "all" else (part.signals,)))
    arrays = tuple(name for name in extent.arrays if family_of(name) in families)
    if set(arrays) <= set(TOKEN_ARRAYS):
        raise CometError(f"{where}: holds no {part.signals}, only {', '.join(extent.arrays)}", exit_code=2)
    size = {(r.group, r.shard): sum(r.files[name].size for name in arrays) for r in records}
    committed = {group: [shard for shard in extent.indices(group) if (group, shard) in size] for group in GROUPS}
    if not committed["train"]:
        raise CometError(f"{where}: no training shard is built yet, so there is no part to take")
    count = len(committed["train"])
    if part.fraction is not None:
        always = sum(file.size for file in seal.files.values())
        always += sum(size["validation", shard] for shard in committed["validation"])
        room = part.fraction * (always + sum(size["train", shard] for shard in committed["train"])) - always
        count = _nearest_count([size["train", shard] for shard in committed["train"]], room)
    if part.max_tokens is not None:
        rows = [recipe.shard_rows("train", shard) for shard in committed["train"]]
        count = min(count, _fitting_count([n * recipe.seq_len for n in rows], part.max_tokens))
    chosen = {"train": committed["train"][: max(count, 1)], "validation": committed["validation"]}
    return Extent(recipe.recipe_id, arrays, {group: ranges(set(chosen[group])) for group in GROUPS})


def bytes_of(seal: Seal, extent: Extent, records: Iterable[ShardRecord]) -> int:
    """Return the bytes of these arrays and shards, and of the sealed files; commit records are not counted."""
    keys = set(extent.keys())
    files = (r.files[name].size for r in records if (r.group, r.shard) in keys for name in extent.arrays)
    return sum(file.size for file in seal.files.values()) + sum(files)


def _nearest_count(sizes: list[int], room: float) -> int:
    """Return how many of the sizes, from the first on, add up to the sum nearest to `room`."""
    totals = list(accumulate(sizes, initial=0))
    return min(range(len(totals)), key=lambda count: abs(totals[count] - room))


def _fitting_count(sizes: list[int], room: float) -> int:
    """Return how many of the sizes, from the first on, add up to at most `room`."""
    return sum(total <= room for total in accumulate(sizes))


def detach(cache: Cache, part: Part) -> Extent:
    """Return the extent of a cache, without its text if the part is detached from it.

    Raises CometError if the text could not be attached again.
    """
    if not part.detach_text:
        return cache.extent
    if cache.recipe.continued_views > 1:
        raise CometError(
            f"{cache.name}: --detach-text: its views continue one another (--continue-views), so the text could not be "
            "attached again; share it with its text, or build it without --continue-views",
            exit_code=2,
        )
    return without_text(cache.extent)


def require_detached(destination: "Location", current: Extent | None) -> None:
    """Raise CometError if the destination, whose extent is `current`, holds the text."""
    if current is not None and set(TEXT_ARRAYS) & set(current.arrays):
        raise CometError(
            f"{destination.name}: already holds the text of this cache; omit --detach-text, or choose another location",
            exit_code=2,
        )


def require_no_text(cache: Cache, destination: "Location", shards: Iterable[ShardKey], policy: RetryPolicy) -> None:
    """Raise CometError if the destination, which has no extent yet, holds text left by a stopped copy of the whole."""
    paths = [cache.specs[group][name].chunk_path(shard) for group, shard in shards for name in TEXT_ARRAYS]
    stop = threading.Event()
    sizes = map_concurrently(lambda path: retry(partial(destination.size_of, path), policy, stop), paths, stop)
    for path, size in zip(paths, sizes, strict=True):
        if size is not None:
            raise CometError(
                f"{destination.name}: {path} holds text, left by a copy of the whole that was stopped; choose another "
                "location, or remove what is there",
                exit_code=2,
            )
