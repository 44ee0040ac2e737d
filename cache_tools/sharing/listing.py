"""The description of a cache at a location, all of it checked: metadata, seal, extent and commit records.

Every path follows from the recipe, so that no location is ever listed and nothing read from one becomes a path.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cache_tools.errors import CometError
from cache_tools.sharing.locations.location import Location
from cache_tools.sharing.mistaken import PerhapsAbsent
from cache_tools.sharing.retry import RetryPolicy, map_concurrently, retry
from cache_tools.store.layout import MAX_METADATA_BYTES, max_file_bytes
from cache_tools.store.ledger import (
    EXTENT,
    MAX_ATTRIBUTES_BYTES,
    SEAL,
    Extent,
    ShardKey,
    ShardRecord,
    parse_extent,
    parse_shard_record,
    sealed_limits,
    shard_record_path,
)
from cache_tools.store.reader import Cache, open_cache, read_attributes
from cache_tools.store.records import MAX_RECORD_BYTES

ROOT = "zarr.json"


@dataclass(frozen=True)
class Listing:
    """The description of a cache at a location. No array of `cache` can be read."""

    location: Location
    cache: Cache
    metadata: dict[str, bytes]  # content of zarr.json, seal and extent
    records: dict[ShardKey, ShardRecord]  # of the committed shards of the extent

    @property
    def missing(self) -> list[ShardKey]:
        """The shards of its extent without a commit record."""
        return [shard for shard in self.cache.extent.keys() if shard not in self.records]


def read_listing(location: Location, policy: RetryPolicy) -> Listing:
    """Read and check the description of the cache at a location.

    Raises CometError if there is no sound cache, and Unreachable if the location does not answer.
    """
    stop = threading.Event()

    def get(path: str, limit: int) -> bytes:
        data = retry(lambda: location.read(path, limit), policy, stop)
        if data is None:
            raise CometError(f"{location.name}: no cache there, or an incomplete one: no {path}", exit_code=2)
        return data

    with TemporaryDirectory() as folder:
        root = Path(folder)
        try:
            metadata = {ROOT: get(ROOT, MAX_ATTRIBUTES_BYTES)}
            write_files(root, metadata)
            recipe, _ = read_attributes(root)
            metadata |= {path: get(path, MAX_RECORD_BYTES) for path in (SEAL, EXTENT)}
            paths = [path for path in sealed_limits(recipe) if path.endswith(f"/{ROOT}")]
            contents = map_concurrently(lambda path: get(path, MAX_METADATA_BYTES), paths, stop)
            write_files(root, metadata | dict(zip(paths, contents, strict=True)))
            cache = open_cache(root)
        except CometError as error:
            error.args = (str(error).replace(folder, location.name),)
            raise

    def record(shard: ShardKey) -> ShardRecord | None:
        try:
            return read_record(location, cache, shard, policy, stop)
        except PerhapsAbsent as error:
            policy.warn(f"{error}; the shard is taken for one that is not built yet")
            return None

    return Listing(location, cache, metadata, _by_shard(record, cache.extent, stop))


def write_files(root: Path, files: Mapping[str, bytes]) -> None:
    """Write files by their paths relative to a temporary folder."""
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


def read_records(location: Location, cache: Cache, extent: Extent, policy: RetryPolicy) -> dict[ShardKey, ShardRecord]:
    """Return the commit records at a location within the extent. Raises CometError if one is damaged."""
    stop = threading.Event()
    return _by_shard(lambda shard: read_record(location, cache, shard, policy, stop), extent, stop)


def _by_shard(
    read: Callable[[ShardKey], ShardRecord | None], extent: Extent, stop: threading.Event
) -> dict[ShardKey, ShardRecord]:
    """Return the records that `read` finds for the shards of the extent."""
    shards = extent.keys()
    records = map_concurrently(read, shards, stop)
    return {shard: record for shard, record in zip(shards, records, strict=True) if record is not None}


def read_record(
    location: Location, cache: Cache, shard: ShardKey, policy: RetryPolicy, stop: threading.Event
) -> ShardRecord | None:
    """Return the commit record of a shard, None if there is none. Raises CometError if it is damaged."""
    path = shard_record_path(*shard)
    data = retry(lambda: location.read(path, MAX_RECORD_BYTES), policy, stop)
    limit = {name: max_file_bytes(spec) for name, spec in cache.specs[shard[0]].items()}
    return None if data is None else parse_shard_record(data, f"{location.name}/{path}", cache.recipe, *shard, limit)


def read_extent(location: Location, cache: Cache, policy: RetryPolicy) -> Extent | None:
    """Return the extent of this cache at a location, None if not written yet. Raises CometError if it is damaged."""
    data = retry(lambda: location.read(EXTENT, MAX_RECORD_BYTES), policy, threading.Event())
    if data is None:
        return None
    return parse_extent(data, f"{location.name}/{EXTENT}", cache.recipe, tuple(cache.specs["train"]))
