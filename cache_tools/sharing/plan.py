"""Plan a transfer: compare the cache at a source with its destination, and list what is missing there."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory

from cache_tools.errors import CometError
from cache_tools.settings import Part
from cache_tools.sharing.listing import ROOT, Listing, read_extent, read_records, write_files
from cache_tools.sharing.locations.folder import Folder
from cache_tools.sharing.locations.location import Location
from cache_tools.sharing.parts import bytes_of, detach, part_extent, require_detached, require_no_text
from cache_tools.sharing.retry import RetryPolicy, map_concurrently, retry
from cache_tools.signals import TEXT_ARRAYS
from cache_tools.store.copy import ranges, shortened
from cache_tools.store.ledger import SEAL, Extent, ShardKey, ShardRecord, cache_id, with_tokens
from cache_tools.store.reader import Cache, read_attributes
from cache_tools.store.recipe import GROUPS
from cache_tools.store.records import MAX_RECORD_BYTES


@dataclass(frozen=True)
class Plan:
    """What to copy from a source to a destination."""

    source: Listing
    destination: Location
    extent: Extent  # of the destination in the end
    current_extent: Extent | None  # of the destination when the plan was made
    current_records: dict[ShardKey, ShardRecord]  # commit records of the destination when the plan was made
    lacking: dict[ShardKey, list[str]]  # arrays to copy; none where only the commit record is to be written
    is_sealed: bool  # whether the destination holds the seal
    damaged: tuple[str, ...] = ()  # sealed files that are missing or damaged beside the destination's seal

    @property
    def size(self) -> int:
        """Bytes to copy."""
        files = self.source.cache.seal.files
        sealed = sum(files[path].size for path in (self.damaged if self.is_sealed else files))
        records = self.source.records
        return sealed + sum(records[shard].files[name].size for shard, names in self.lacking.items() for name in names)

    @cached_property
    def records(self) -> dict[ShardKey, ShardRecord]:
        """Commit records of source and destination; where both have one, the destination's."""
        return self.source.records | self.current_records

    @property
    def whole_size(self) -> int:
        """Bytes of all files of the destination in the end, commit records not counted."""
        return bytes_of(self.source.cache.seal, self.extent, self.records.values())

    @property
    def missing(self) -> list[ShardKey]:
        """The shards of the extent that neither source nor destination has."""
        return [shard for shard in self.extent.keys() if shard not in self.records]

    @property
    def cache_id(self) -> str | None:
        """The cache id of the destination in the end, None while shards are missing."""
        cache = self.source.cache
        return None if self.missing else cache_id(cache.recipe, cache.seal, self.extent, self.records)

    @property
    def attached_id(self) -> str | None:
        """The cache id once the text is attached, None if the destination holds it or shards are missing."""
        if self.missing or self.extent.has_text:
            return None
        cache = self.source.cache
        return cache_id(cache.recipe, cache.seal, with_tokens(self.extent, cache.recipe), self.records)


def plan(
    source: Listing, destination: Location, part: Part, policy: RetryPolicy, expected_id: str | None = None
) -> Plan:
    """Plan a transfer that adds a part of the source to what the destination holds.

    Raises CometError if neither the source nor the part has `expected_id`, if the destination holds anything but this
    cache, and if source and destination together lack arrays of the result.
    """
    cache = source.cache
    extent = detach(cache, part)
    if not part.is_whole:
        records = source.records.values()
        extent = part_extent(cache.recipe, cache.seal, extent, records, part, source.location.name)
    if expected_id is not None:
        _require_id(source, extent, expected_id)
    is_sealed = _has_seal(source, destination, policy)
    current_extent = read_extent(destination, cache, policy) if is_sealed else None
    if part.detach_text:
        require_detached(destination, current_extent)
    if is_sealed and current_extent is None and not extent.has_text:
        require_no_text(cache, destination, extent.keys(), policy)
    if current_extent is not None:
        extent = _union(current_extent, extent, cache)
    current_records = read_records(destination, cache, extent, policy) if is_sealed else {}
    lacking = _find_lacking(source, destination, extent, current_extent, current_records, policy)
    for shard, names in lacking.items():
        _require_available(source, destination, shard, names, current_records.get(shard))
    damaged = _damaged_sealed(source, destination) if is_sealed else ()
    return Plan(source, destination, extent, current_extent, current_records, lacking, is_sealed, damaged)


def _require_id(source: Listing, extent: Extent, expected_id: str) -> None:
    """Raise CometError unless the source or its part `extent` has this cache id, as it is or with text attached."""
    name = source.location.name
    if source.missing:
        raise CometError(f"{name}: --id: {len(source.missing)} shards are missing, so there is no cache id yet")
    cache = source.cache
    extents = [cache.extent, extent]
    extents += [with_tokens(one, cache.recipe) for one in extents]
    found = [cache_id(cache.recipe, cache.seal, one, source.records) for one in extents]
    if expected_id not in found:
        raise CometError(f"{name}: expected the cache id {expected_id[:64]}, found {found[0]}; nothing was copied")


def _has_seal(source: Listing, destination: Location, policy: RetryPolicy) -> bool:
    """Return whether the destination has the seal of the source.

    Raises CometError if it cannot be written to, or holds anything but this cache, or the first files of it.
    """
    destination.require_writable()
    stop = threading.Event()
    root, seal = (retry(partial(destination.read, path, MAX_RECORD_BYTES), policy, stop) for path in (ROOT, SEAL))
    if root is None:
        require_empty(destination, policy)
        return False
    if root != source.metadata[ROOT] or seal not in (None, source.metadata[SEAL]):
        unsealed = "same recipe, started by another machine and never sealed: remove it if no build of it is running"
        same_recipe = "same recipe, other sealed files" if seal is not None else unsealed
        difference = _recipe_difference(source, root, same_recipe, destination.name)
        raise CometError(
            f"{destination.name}: holds another cache; choose another location ({difference})", exit_code=2
        )
    return seal is not None


def _damaged_sealed(source: Listing, destination: Location) -> tuple[str, ...]:
    """Return the sealed files that a sealed folder lacks, or that are damaged there; none at a URL, where to compare
    files is to read them."""
    if not isinstance(destination, Folder):
        return ()
    files = source.cache.seal.files.items()
    return tuple(path for path, file in files if not destination.has_exactly(path, file.size, file.sha256))


def require_empty(location: Location, policy: RetryPolicy) -> None:
    """Raise CometError if the location holds files, unless a cache has just been started there."""
    stop = threading.Event()
    is_empty = retry(location.is_empty, policy, stop)
    if not is_empty and retry(lambda: location.size_of(ROOT), policy, stop) is None:
        raise CometError(f"{location.name}: holds files, but no cache; choose an empty location", exit_code=2)


def _recipe_difference(source: Listing, attributes: bytes, same_recipe: str, name: str) -> str:
    """Return how the recipe in these attributes differs from the source's, `same_recipe` if it does not."""
    with TemporaryDirectory() as folder:
        write_files(Path(folder), {ROOT: attributes})
        try:
            recipe, _ = read_attributes(Path(folder))
        except CometError as error:
            return str(error).replace(folder, name)
    return shortened(recipe.differences(source.cache.recipe) or [same_recipe])


def _union(one: Extent, other: Extent, cache: Cache) -> Extent:
    """Return the extent with all arrays and all shards of two parts of a cache."""
    arrays = tuple(name for name in cache.specs["train"] if name in (*one.arrays, *other.arrays))
    shards = {group: ranges({*one.indices(group), *other.indices(group)}) for group in GROUPS}
    return Extent(one.recipe_id, arrays, shards)


def _find_lacking(
    source: Listing,
    destination: Location,
    extent: Extent,
    current_extent: Extent | None,
    current_records: Mapping[ShardKey, ShardRecord],
    policy: RetryPolicy,
) -> dict[ShardKey, list[str]]:
    """Return the arrays of each shard that the destination lacks; shards that neither side has are left out.

    A shard with a commit record has all arrays of the destination's current extent. For its other arrays, and where a
    record was written before the extent, the size of each file decides: a file gets its name only once it is complete.
    """
    finished = set(current_extent.keys()) if current_extent is not None else set()
    held = () if current_extent is None else current_extent.arrays
    stop = threading.Event()

    def lacking(shard: ShardKey) -> list[str] | None:
        if shard not in current_records:
            return list(extent.arrays) if shard in source.records else None
        unsure = [name for name in extent.arrays if not (shard in finished and name in held)]
        return absent_arrays(destination, source.cache, current_records[shard], unsure, policy, stop) or None

    shards = extent.keys()
    names_of = zip(shards, map_concurrently(lacking, shards, stop), strict=True)
    return {shard: names for shard, names in names_of if names is not None}


def absent_arrays(
    location: Location, cache: Cache, record: ShardRecord, names: list[str], policy: RetryPolicy, stop: threading.Event
) -> list[str]:
    """Return those of the arrays of a shard for which a location has no file of the recorded size."""

    def size(name: str) -> int | None:
        path = cache.specs[record.group][name].chunk_path(record.shard)
        return retry(lambda: location.size_of(path), policy, stop)

    return [name for name in names if size(name) != record.files[name].size]


def _require_available(
    source: Listing, destination: Location, shard: ShardKey, names: list[str], current: ShardRecord | None
) -> None:
    """Raise CometError if the source cannot provide these arrays of a shard; `current` is the destination's record."""
    record = source.records.get(shard)
    if unheld := [name for name in names if record is None or name not in source.cache.extent.arrays]:
        attach = "; choose another location, attach the text there, and merge the two"
        raise CometError(
            f"{destination.name}: shard {shard} would lack {', '.join(unheld)}, which {source.location.name} does not "
            f"hold either{attach if set(unheld) <= set(TEXT_ARRAYS) else ''}"
        )
    if current is not None and current != record:
        raise another_version(source.location, destination, shard)


def another_version(source: Location, destination: Location, shard: ShardKey) -> CometError:
    """Return the error of a shard that the destination holds in another version, and in part."""
    return CometError(
        f"{destination.name}: shard {shard} is another version than that of {source.name} and cannot be completed from "
        "it; choose another location",
        exit_code=2,
    )
