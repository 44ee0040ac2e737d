"""A cache at a URL, read without pulling it: shards come as they are needed, and are kept in a bounded folder."""

import threading
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace

from tqdm import tqdm

from cache_tools.errors import CometError
from cache_tools.settings import LocalCache, Part
from cache_tools.sharing.concurrent import map_concurrently, retry
from cache_tools.sharing.disk_cache import DiskCache
from cache_tools.sharing.listing import Listing, id_of, read_listing
from cache_tools.sharing.locations.folder import Folder
from cache_tools.sharing.locations.location import locate
from cache_tools.sharing.locations.remote import Remote, RetryPolicy
from cache_tools.sharing.plan import plan
from cache_tools.sharing.transfer import Transfer, verified
from cache_tools.store.ledger import FileRecord, ShardKey
from cache_tools.store.reader import Cache, open_cache

CACHES = "caches"


class RemoteShards:
    """The files of shards at a location, several in flight, each compared with its record before it is kept."""

    def __init__(self, source: Listing, kept: DiskCache, policy: RetryPolicy) -> None:
        self.location, self.kept, self.policy = source.location, kept, policy
        self.described = described(source, kept.local)

    def read(self, files: Mapping[str, FileRecord]) -> dict[str, bytes]:
        """The content of each file by its path. Raises CometError when one is damaged there, or nobody answers."""

        self.kept.require_open()

        def get(path: str) -> bytes:
            return self.kept.get(files[path], lambda: self._fetched(path, files[path]))

        return dict(zip(files, map_concurrently(get, list(files), threading.Event()), strict=True))

    def close(self) -> None:
        self.kept.closed.set()
        if isinstance(self.location, Remote):
            self.location.close()

    def _fetched(self, path: str, record: FileRecord) -> bytes:
        def fetch() -> bytes:
            where = f"{self.location.name}/{path}"
            with closing(self.location.blocks(path, record.size)) as blocks:
                return b"".join(verified(blocks, record, where, lambda size: self.kept.require_open()))

        return retry(fetch, self.policy, self.kept.closed)


def open_afar(url: str, local: LocalCache, policy: RetryPolicy) -> Cache:
    """The cache at a URL, to read shards of. Everything but the shards' files is in `local` afterwards, and stays.

    Raises CometError when there is no sound cache or not all of one, and Unreachable when nobody answers.
    """
    location = locate(url, policy)
    if isinstance(location, Folder):
        return open_cache(location.root)
    source = read_listing(location, policy)
    if source.missing:
        raise CometError(
            f"{location.name}: {len(source.missing)} shards are not built yet; to train on what there is, pull it first"
        )
    if not source.cache.extent.has_text:
        raise CometError(
            f"{location.name}: holds no text; pull it, and attach the text with `comet-cache attach`", exit_code=2
        )
    kept = DiskCache(local)
    folder = metadata_folder(source, kept, policy)
    return open_cache(folder.root, location.name, RemoteShards(source, kept, policy))


def described(source: Listing, local: LocalCache) -> str:
    """What there is to read, and how much of it stays."""
    arrays = source.cache.extent.arrays
    size = sum(record.files[name].size for record in source.records.values() for name in arrays)
    later = "" if size <= local.size else "; later epochs read again what had to go"
    return (
        f"{source.location.name}: {in_bytes(size)} of shards, read as they are needed; up to {in_bytes(local.size)} "
        f"are kept in {local.folder}{later}"
    )


def in_bytes(size: int) -> str:
    return f"{tqdm.format_sizeof(size)}B"


def metadata_folder(source: Listing, kept: DiskCache, policy: RetryPolicy) -> Folder:
    """A folder for this very cache, named by its id: what was sealed, and the ledger."""
    cache_id = id_of(source.cache, source.cache.extent, source.records)
    folder = Folder(kept.local.folder / CACHES / cache_id)
    with kept.locked(cache_id), folder.staging():
        planned = plan(source, folder, Part(), policy)
        only_records: dict[ShardKey, list[str]] = {shard: [] for shard in planned.lacking if shard not in planned.kept}
        Transfer(replace(planned, lacking=only_records), policy, lambda size: None).run()
    return folder
