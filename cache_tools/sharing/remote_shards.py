"""A cache at a URL, read without pulling it: files of shards, and the chunks of the start that a student needs, are
fetched when needed and kept in a bounded folder."""

import threading
from collections.abc import Mapping
from contextlib import closing

from tqdm import tqdm

from cache_tools.errors import CometError, noop
from cache_tools.places.destinations import require_no_cache
from cache_tools.settings import LocalCache
from cache_tools.sharing.disk_cache import DiskCache
from cache_tools.sharing.listing import Listing, read_listing
from cache_tools.sharing.locations.folder import Folder
from cache_tools.sharing.locations.location import locate
from cache_tools.sharing.plan import Plan
from cache_tools.sharing.retry import RetryPolicy, map_concurrently, retry
from cache_tools.sharing.transfer import Transfer, verified
from cache_tools.store.ledger import FileRecord, cache_id, shard_record_path
from cache_tools.store.reader import Cache, open_cache
from cache_tools.store.records import sha256, with_checksum
from cache_tools.store.start import start_chunks

CACHES = "caches"


class RemoteShards:
    """The files of shards at a location, several fetched at once, each compared with its record before it is kept."""

    def __init__(self, source: Listing, disk_cache: DiskCache, policy: RetryPolicy) -> None:
        self.location, self.disk_cache, self.policy = source.location, disk_cache, policy
        self.described = _describe(source, disk_cache.local)

    def read(self, files: Mapping[str, FileRecord]) -> dict[str, bytes]:
        """Return the content of each file by its path. Raises CometError if one is damaged or cannot be read."""
        self.disk_cache.require_open()

        def get(path: str) -> bytes:
            return self.disk_cache.get(files[path], lambda: self._fetch(path, files[path]))

        return dict(zip(files, map_concurrently(get, list(files), threading.Event()), strict=True))

    def close(self) -> None:
        """End all reads; `read` raises CometError from now on, also in other threads."""
        self.disk_cache.closed.set()
        self.location.close()

    def _fetch(self, path: str, record: FileRecord) -> bytes:
        def fetch() -> bytes:
            name = f"{self.location.name}/{path}"
            with closing(self.location.blocks(path, record.size)) as blocks:
                return b"".join(verified(blocks, record, name, lambda size: self.disk_cache.require_open()))

        return retry(fetch, self.policy, self.disk_cache.closed)


def open_remote(url: str, local: LocalCache, policy: RetryPolicy) -> Cache:
    """Open the cache at a URL, to read its shards and its start when needed. All other files are in `local` afterwards,
    and stay.

    Raises CometError if there is no sound and complete cache with its text, and Unreachable if there is no answer.
    """
    require_no_cache(local.folder, "--local-cache")
    location = locate(url, policy)
    if isinstance(location, Folder):
        return open_cache(location.root)
    source = read_listing(location, policy)
    if source.missing:
        raise CometError(
            f"{location.name}: {len(source.missing)} shards are not built yet; to train on the others, pull it first"
        )
    if not source.cache.extent.has_text:
        raise CometError(
            f"{location.name}: holds no text; pull it, and attach the text with `comet-cache attach`", exit_code=2
        )
    disk_cache = DiskCache(local)
    folder = _fetch_metadata(source, disk_cache, policy)
    return open_cache(folder.root, location.name, RemoteShards(source, disk_cache, policy))


def _describe(source: Listing, local: LocalCache) -> str:
    """Return a line about how much there is to read, and how much of it is kept where."""
    arrays = source.cache.extent.arrays
    size = sum(record.files[name].size for record in source.records.values() for name in arrays)
    shards, kept = tqdm.format_sizeof(size, "B"), tqdm.format_sizeof(local.size, "B")
    evicted = "" if size <= local.size else "; later epochs fetch evicted shards again"
    return (
        f"{source.location.name}: {shards} of shards, fetched when needed; up to {kept} kept in {local.folder}{evicted}"
    )


def _fetch_metadata(source: Listing, disk_cache: DiskCache, policy: RetryPolicy) -> Folder:
    """Copy sealed files, but for the start's chunks, and the ledger into a folder named by the cache id; return it.

    Files that are there and differ, as after a full disk or a power cut, are written again.
    """
    extent = source.cache.extent
    name = cache_id(source.cache.recipe, source.cache.seal, extent, source.records)
    folder = Folder(disk_cache.local.folder / CACHES / name)
    ledger = {shard_record_path(*key): with_checksum(record.to_json()) for key, record in source.records.items()}
    with disk_cache.locked(name), folder.staging():
        for path, data in (source.metadata | ledger).items():
            if not folder.has_exactly(path, len(data), sha256(data)):
                folder.write(path, [data])
        planned = Plan(source, folder, extent, extent, source.records, lacking={}, is_sealed=False)
        Transfer(planned, policy, noop, frozenset(start_chunks(source.cache.recipe))).run()
    return folder
