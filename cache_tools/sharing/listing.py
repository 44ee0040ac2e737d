"""What a location says of the cache in it, all of it checked: metadata, seal, extent and commit records.

Every name follows from the recipe: nothing from outside is ever a path, and no location needs to be listed.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cache_tools.errors import CometError
from cache_tools.sharing.concurrent import map_concurrently, retry
from cache_tools.sharing.locations.location import Location
from cache_tools.sharing.locations.remote import RetryPolicy
from cache_tools.store.layout import MAX_METADATA_BYTES, max_file_bytes
from cache_tools.store.ledger import (
    EXTENT,
    MAX_ATTRIBUTES_BYTES,
    SEAL,
    Extent,
    ShardKey,
    ShardRecord,
    identity,
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
    """What a location says of the cache in it. `records` are the commit records of the extent, as far as they exist;
    of `cache` no array can be read."""

    location: Location
    cache: Cache
    metadata: dict[str, bytes]  # zarr.json, seal and extent as they are
    records: dict[ShardKey, ShardRecord]

    @property
    def missing(self) -> list[ShardKey]:
        """The shards of its extent that it does not hold."""
        return [shard for shard in self.cache.extent.keys() if shard not in self.records]


def id_of(cache: Cache, extent: Extent, records: Mapping[ShardKey, ShardRecord]) -> str:
    held = (records[shard].to_json() for shard in extent.keys())
    return identity(cache.recipe, cache.seal.to_json(), extent, held)


def read_listing(location: Location, policy: RetryPolicy) -> Listing:
    """Reads what a location says of its cache, and checks all of it.

    Raises CometError when there is no sound cache, and Unreachable when nobody answers.
    """
    stop = threading.Event()

    def get(path: str, limit: int) -> bytes:
        data = retry(lambda: location.read(path, limit), policy, stop)
        if data is None:
            raise CometError(f"{location.name}: no cache there, or not all of one: it has no {path}", exit_code=2)
        return data

    with TemporaryDirectory() as folder:
        root = Path(folder)
        try:
            metadata = {ROOT: get(ROOT, MAX_ATTRIBUTES_BYTES)}
            write_all(root, metadata)
            recipe, _ = read_attributes(root)
            metadata |= {path: get(path, MAX_RECORD_BYTES) for path in (SEAL, EXTENT)}
            names = [path for path in sealed_limits(recipe) if path.endswith(f"/{ROOT}")]
            found = map_concurrently(lambda path: get(path, MAX_METADATA_BYTES), names, stop)
            write_all(root, metadata | dict(zip(names, found, strict=True)))
            cache = open_cache(root)
        except CometError as error:
            error.args = (str(error).replace(folder, location.name),)
            raise
    return Listing(location, cache, metadata, read_records(location, cache, cache.extent, policy))


def write_all(root: Path, files: Mapping[str, bytes]) -> None:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


def read_records(location: Location, cache: Cache, extent: Extent, policy: RetryPolicy) -> dict[ShardKey, ShardRecord]:
    """The commit records that a location has within the extent. Raises CometError when one is damaged."""
    stop, shards = threading.Event(), extent.keys()
    found = map_concurrently(lambda shard: read_record(location, cache, shard, policy, stop), shards, stop)
    return {shard: record for shard, record in zip(shards, found, strict=True) if record is not None}


def read_record(
    location: Location, cache: Cache, shard: ShardKey, policy: RetryPolicy, stop: threading.Event
) -> ShardRecord | None:
    """The commit record that a location has of a shard, None if it has none. Raises CometError when it is damaged."""
    path = shard_record_path(*shard)
    data = retry(lambda: location.read(path, MAX_RECORD_BYTES), policy, stop)
    limit = {name: max_file_bytes(spec) for name, spec in cache.specs[shard[0]].items()}
    return None if data is None else parse_shard_record(data, f"{location.name}/{path}", cache.recipe, *shard, limit)


def extent_of(location: Location, cache: Cache, policy: RetryPolicy) -> Extent | None:
    """What a location is meant to hold of this cache, None before that is written. Raises CometError if damaged."""
    data = retry(lambda: location.read(EXTENT, MAX_RECORD_BYTES), policy, threading.Event())
    return (
        None
        if data is None
        else parse_extent(data, f"{location.name}/{EXTENT}", cache.recipe, tuple(cache.specs["train"]))
    )
