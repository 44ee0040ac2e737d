"""What a destination has already of the cache at a source, and so what there is to move."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory

from cache_tools.errors import CometError
from cache_tools.settings import Part
from cache_tools.sharing.concurrent import map_concurrently, retry
from cache_tools.sharing.detached import offered, require_detached, require_no_text
from cache_tools.sharing.listing import ROOT, Listing, extent_of, id_of, read_records, write_all
from cache_tools.sharing.locations.location import Location
from cache_tools.sharing.locations.remote import RetryPolicy
from cache_tools.sharing.parts import part_extent
from cache_tools.signals import TEXT_ARRAYS
from cache_tools.store.copy import ranges, shortened
from cache_tools.store.ledger import SEAL, Extent, ShardKey, ShardRecord, with_tokens
from cache_tools.store.reader import Cache, read_attributes
from cache_tools.store.recipe import GROUPS
from cache_tools.store.records import MAX_RECORD_BYTES


@dataclass(frozen=True)
class Plan:
    """What is to move. `extent` is what the destination is to hold in the end, `there` what it was meant to before,
    `kept` its commit records, `lacking` the arrays that it lacks of each shard."""

    source: Listing
    destination: Location
    extent: Extent
    kept: dict[ShardKey, ShardRecord]
    lacking: dict[ShardKey, list[str]]
    is_sealed: bool
    there: Extent | None

    @property
    def size(self) -> int:
        """Bytes to move."""
        sealed = 0 if self.is_sealed else sum(file.size for file in self.source.cache.seal.files.values())
        records = self.source.records
        return sealed + sum(records[shard].files[name].size for shard, names in self.lacking.items() for name in names)

    @cached_property
    def records(self) -> dict[ShardKey, ShardRecord]:
        """Of both places; where both have one, the destination's stays."""
        return self.source.records | self.kept

    @property
    def whole_size(self) -> int:
        """Bytes of all files that the destination holds in the end, records left out."""
        held = [self.records[shard] for shard in self.extent.keys() if shard in self.records]
        sealed = sum(file.size for file in self.source.cache.seal.files.values())
        return sealed + sum(record.files[name].size for record in held for name in self.extent.arrays)

    @property
    def missing(self) -> list[ShardKey]:
        """The shards of the extent that neither location has."""
        return [shard for shard in self.extent.keys() if shard not in self.records]

    @property
    def cache_id(self) -> str | None:
        """Of what the destination holds in the end, None while shards are missing."""
        return None if self.missing else id_of(self.source.cache, self.extent, self.records)

    @property
    def attached_id(self) -> str | None:
        """The cache id when its text is attached, None where it holds it or shards are missing."""
        if self.missing or self.extent.has_text:
            return None
        return id_of(self.source.cache, with_tokens(self.extent, self.source.cache.recipe), self.records)


def plan(source: Listing, destination: Location, part: Part, policy: RetryPolicy, pin: str | None = None) -> Plan:
    """What has to move so that the destination holds this part of the source beside what it holds already.

    With `pin`, a cache id, the source, or the part of it, must have it. Raises CometError when it has not, when the
    destination holds anything but this cache, and when what it would hold in the end is not to be had.
    """
    cache = source.cache
    extent = offered(cache.extent, part)
    if not part.is_whole:
        records = source.records.values()
        extent = part_extent(cache.recipe, cache.seal, extent, records, part, source.location.name)
    if pin is not None:
        require_id(source, extent, pin)
    is_sealed = is_same(source, destination, policy)
    there = extent_of(destination, cache, policy) if is_sealed else None
    if part.detach_text:
        require_detached(destination, there)
    if is_sealed and there is None and not extent.has_text:
        require_no_text(cache, destination, extent.keys(), policy)
    if there is not None:
        extent = joined(there, extent, cache)
    kept = read_records(destination, cache, extent, policy) if is_sealed else {}
    lacking = find_lacking(source, destination, extent, there, kept, policy)
    for shard, names in lacking.items():
        require_available(source, destination, shard, names, kept.get(shard))
    return Plan(source, destination, extent, kept, lacking, is_sealed, there)


def require_id(source: Listing, extent: Extent, pin: str) -> None:
    """Raises CometError unless the whole source, or this part of it, has this cache id, or will with its text."""
    name = source.location.name
    if source.missing:
        raise CometError(f"{name}: --id: {len(source.missing)} shards are not there, so it has no cache id yet")
    cache = source.cache
    whole, part = (id_of(cache, one, source.records) for one in (cache.extent, extent))
    attached = (id_of(cache, with_tokens(one, cache.recipe), source.records) for one in (cache.extent, extent))
    if pin not in (whole, part, *attached):
        raise CometError(f"{name}: expected the cache id {pin[:64]}, found {whole}; nothing was moved")


def is_same(source: Listing, destination: Location, policy: RetryPolicy) -> bool:
    """Whether the destination has the seal of the source; without one it must be empty, or hold what comes first.

    Raises CometError when it holds anything else, and where nobody can write.
    """
    destination.require_writable()
    stop = threading.Event()
    root, seal = (retry(partial(destination.read, path, MAX_RECORD_BYTES), policy, stop) for path in (ROOT, SEAL))
    if root is None:
        require_empty(destination, policy)
        return False
    if root != source.metadata[ROOT] or seal not in (None, source.metadata[SEAL]):
        unsealed = "of the same recipe, begun by another machine and never sealed: remove it if nobody is at work on it"
        same_recipe = "other sealed files, of the same recipe" if seal is not None else unsealed
        unlike = unlike_there(source, root, same_recipe, destination.name)
        raise CometError(f"{destination.name}: holds another cache; choose another location ({unlike})", exit_code=2)
    return seal is not None


def require_empty(location: Location, policy: RetryPolicy) -> None:
    """Raises CometError when files lie there; not for a cache that is just being begun there."""
    stop = threading.Event()
    is_empty = retry(location.is_empty, policy, stop)
    if not is_empty and retry(lambda: location.size_of(ROOT), policy, stop) is None:
        raise CometError(f"{location.name}: holds files, but no cache; choose an empty location", exit_code=2)


def unlike_there(source: Listing, attributes: bytes, same_recipe: str, name: str) -> str:
    """In what the cache of these attributes is not the source's; `same_recipe` where that is not in the recipe."""
    with TemporaryDirectory() as folder:
        write_all(Path(folder), {ROOT: attributes})
        try:
            recipe, _ = read_attributes(Path(folder))
        except CometError as error:
            return str(error).replace(folder, name)
    return shortened(recipe.differences(source.cache.recipe) or [same_recipe])


def joined(one: Extent, other: Extent, cache: Cache) -> Extent:
    """All arrays and all shards of both parts of a cache."""
    arrays = tuple(name for name in cache.specs["train"] if name in (*one.arrays, *other.arrays))
    shards = {group: ranges({*one.indices(group), *other.indices(group)}) for group in GROUPS}
    return Extent(one.recipe_id, arrays, shards)


def find_lacking(
    source: Listing,
    destination: Location,
    extent: Extent,
    there: Extent | None,
    kept: Mapping[ShardKey, ShardRecord],
    policy: RetryPolicy,
) -> dict[ShardKey, list[str]]:
    """The arrays of each shard of the extent that are still to move, or whose record is; not of those nobody has.

    What the destination is meant to hold already, and has a record of, is there. Where a record came before its
    extent, the sizes of the files say what is: a file has its name only when it is whole.
    """
    finished = set(there.keys()) if there is not None else set()
    held = () if there is None else there.arrays
    stop = threading.Event()

    def lacking(shard: ShardKey) -> list[str] | None:
        if shard not in kept:
            return list(extent.arrays) if shard in source.records else None
        unsure = [name for name in extent.arrays if not (shard in finished and name in held)]
        return not_there(destination, source.cache, kept[shard], unsure, policy, stop) or None

    shards = extent.keys()
    found = zip(shards, map_concurrently(lacking, shards, stop), strict=True)
    return {shard: names for shard, names in found if names is not None}


def not_there(
    location: Location, cache: Cache, record: ShardRecord, names: list[str], policy: RetryPolicy, stop: threading.Event
) -> list[str]:
    """Those of these arrays of a shard of which a location has no file of the size that its record names."""

    def size(name: str) -> int | None:
        path = cache.specs[record.group][name].chunk_path(record.shard)
        return retry(lambda: location.size_of(path), policy, stop)

    return [name for name in names if size(name) != record.files[name].size]


def require_available(
    source: Listing, destination: Location, shard: ShardKey, names: list[str], kept: ShardRecord | None
) -> None:
    """Raises CometError when these arrays of a shard cannot come from the source."""
    record = source.records.get(shard)
    if unheld := [name for name in names if record is None or name not in source.cache.extent.arrays]:
        where = f"{destination.name}: shard {shard[0]} {shard[1]}"
        way_out = "; choose another location, attach the text there, and merge the two" * (
            set(unheld) <= set(TEXT_ARRAYS)
        )
        raise CometError(
            f"{where}: would lack {', '.join(unheld)}, which {source.location.name} does not hold either{way_out}"
        )
    if kept is not None and kept != record:
        raise another_version(source.location, destination, shard)


def another_version(source: Location, destination: Location, shard: ShardKey) -> CometError:
    return CometError(
        f"{destination.name}: shard {shard[0]} {shard[1]}: is another version than that of {source.name}, which cannot "
        "complete it; choose another location",
        exit_code=2,
    )
