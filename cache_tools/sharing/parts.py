"""Parts of a cache: which shards and arrays a smaller copy of it holds. The validation shards always come along."""

from collections.abc import Iterable

from cache_tools.errors import CometError
from cache_tools.settings import Part
from cache_tools.signals import FAMILIES, TOKEN_ARRAYS, family_of
from cache_tools.store.copy import ranges
from cache_tools.store.ledger import Extent, Seal, ShardRecord
from cache_tools.store.recipe import GROUPS, Recipe


def part_extent(
    recipe: Recipe, seal: Seal, extent: Extent, records: Iterable[ShardRecord], part: Part, where: object
) -> Extent:
    """The extent of a part of what is committed within `extent`: the validation shards and the first training shards.

    At least one training shard is in it. `records` are the commit records of the shards of the extent, as far as they
    exist. Raises CometError when there is no such part.
    """
    families = ("tokens", *(FAMILIES if part.signals == "all" else (part.signals,)))
    arrays = tuple(name for name in extent.arrays if family_of(name) in families)
    if set(arrays) <= set(TOKEN_ARRAYS):
        raise CometError(f"{where}: holds no {part.signals}, only {', '.join(extent.arrays)}", exit_code=2)
    size = {(r.group, r.shard): sum(r.files[name].size for name in arrays) for r in records}
    there = {group: [shard for shard in extent.indices(group) if (group, shard) in size] for group in GROUPS}
    if not there["train"]:
        raise CometError(f"{where}: no training shard is built yet; there is nothing to take a part of")
    count = len(there["train"])
    if part.fraction is not None:
        along = sum(file.size for file in seal.files.values()) + sum(size["validation", s] for s in there["validation"])
        room = part.fraction * (along + sum(size["train", s] for s in there["train"])) - along
        count = nearest_count([size["train", shard] for shard in there["train"]], room)
    if part.max_tokens is not None:
        rows = [recipe.shard_rows("train", shard) for shard in there["train"]]
        count = min(count, fitting_count([n * recipe.seq_len for n in rows], part.max_tokens))
    chosen = {"train": there["train"][: max(count, 1)], "validation": there["validation"]}
    return Extent(recipe.recipe_id, arrays, {group: ranges(set(chosen[group])) for group in GROUPS})


def bytes_of(seal: Seal, extent: Extent, records: Iterable[ShardRecord]) -> int:
    """What these arrays and shards of a cache weigh, with what was sealed; commit records are left out."""
    held = set(extent.keys())
    files = (r.files[name].size for r in records if (r.group, r.shard) in held for name in extent.arrays)
    return sum(file.size for file in seal.files.values()) + sum(files)


def nearest_count(sizes: list[int], room: float) -> int:
    """How many of these, from the first on, come nearest to `room` together."""
    totals = running_totals(sizes)
    return min(range(len(totals)), key=lambda count: abs(totals[count] - room))


def fitting_count(sizes: list[int], room: float) -> int:
    """How many of these, from the first on, are at most `room` together."""
    return sum(total <= room for total in running_totals(sizes)) - 1


def running_totals(sizes: list[int]) -> list[int]:
    totals = [0]
    for size in sizes:
        totals.append(totals[-1] + size)
    return totals
