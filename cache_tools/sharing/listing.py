"""What a place says of the cache in it, all of it checked: metadata, seal, extent and commit records.

Every name follows from the recipe: nothing from outside is ever a path, and no place needs to be listed.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cache_tools.errors import CometError
from cache_tools.sharing.concurrent import in_flight, tried
from cache_tools.sharing.locations.location import Place
from cache_tools.sharing.locations.remote import Patience
from cache_tools.store.layout import MAX_METADATA_BYTES, max_file_bytes
from cache_tools.store.ledger import (
    EXTENT,
    MAX_ATTRIBUTES_BYTES,
    SEAL,
    Extent,
    ShardRecord,
    identity,
    parse_extent,
    parse_shard_record,
    sealed_limits,
    shard_record_path,
)
from cache_tools.store.reader import Cache, open_cache, read_attributes
from cache_tools.store.recipe import GROUPS
from cache_tools.store.records import MAX_RECORD_BYTES

ROOT = "zarr.json"
Shard = tuple[str, int]


@dataclass(frozen=True)
class Source:
    """What a place says of the cache in it. `records` are the commit records of the extent, as far as they exist;
    of `cache` no array can be read."""

    place: Place
    cache: Cache
    metadata: dict[str, bytes]  # zarr.json, seal and extent as they are
    records: dict[Shard, ShardRecord]

    @property
    def missing(self) -> list[Shard]:
        """The shards of its extent that it does not hold."""
        return [shard for shard in shards_of(self.cache.extent) if shard not in self.records]


def shards_of(extent: Extent) -> list[Shard]:
    return [(group, shard) for group in GROUPS for shard in extent.indices(group)]


def id_of(cache: Cache, extent: Extent, records: Mapping[Shard, ShardRecord]) -> str:
    held = (records[shard].to_json() for shard in shards_of(extent))
    return identity(cache.recipe, cache.seal.to_json(), extent, held)


def look(place: Place, patience: Patience) -> Source:
    """Reads what a place says of its cache, and checks all of it.

    Raises CometError when there is no sound cache, and Unreachable when nobody answers.
    """
    stop = threading.Event()

    def get(path: str, limit: int) -> bytes:
        data = tried(lambda: place.read(path, limit), patience, stop)
        if data is None:
            raise CometError(f"{place.name}: no cache there, or not all of one: it has no {path}", exit_code=2)
        return data

    with TemporaryDirectory() as folder:
        root = Path(folder)
        try:
            metadata = {ROOT: get(ROOT, MAX_ATTRIBUTES_BYTES)}
            write_all(root, metadata)
            recipe, _ = read_attributes(root)
            metadata |= {path: get(path, MAX_RECORD_BYTES) for path in (SEAL, EXTENT)}
            names = [path for path in sealed_limits(recipe) if path.endswith(f"/{ROOT}")]
            found = in_flight(lambda path: get(path, MAX_METADATA_BYTES), names, stop)
            write_all(root, metadata | dict(zip(names, found, strict=True)))
            cache = open_cache(root)
        except CometError as error:
            error.args = (str(error).replace(folder, place.name),)
            raise
    return Source(place, cache, metadata, read_records(place, cache, cache.extent, patience))


def write_all(root: Path, files: Mapping[str, bytes]) -> None:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


def read_records(place: Place, cache: Cache, extent: Extent, patience: Patience) -> dict[Shard, ShardRecord]:
    """The commit records that a place has within the extent. Raises CometError when one is damaged."""
    stop, shards = threading.Event(), shards_of(extent)
    found = in_flight(lambda shard: read_record(place, cache, shard, patience, stop), shards, stop)
    return {shard: record for shard, record in zip(shards, found, strict=True) if record is not None}


def read_record(
    place: Place, cache: Cache, shard: Shard, patience: Patience, stop: threading.Event
) -> ShardRecord | None:
    """The commit record that a place has of a shard, None if it has none. Raises CometError when it is damaged."""
    path = shard_record_path(*shard)
    data = tried(lambda: place.read(path, MAX_RECORD_BYTES), patience, stop)
    limit = {name: max_file_bytes(spec) for name, spec in cache.specs[shard[0]].items()}
    return None if data is None else parse_shard_record(data, f"{place.name}/{path}", cache.recipe, *shard, limit)


def extent_of(place: Place, cache: Cache, patience: Patience) -> Extent | None:
    """What a place is meant to hold of this cache, None before it is written. Raises CometError when it is damaged."""
    data = tried(lambda: place.read(EXTENT, MAX_RECORD_BYTES), patience, threading.Event())
    return (
        None
        if data is None
        else parse_extent(data, f"{place.name}/{EXTENT}", cache.recipe, tuple(cache.specs["train"]))
    )
