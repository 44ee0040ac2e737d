"""A copy of a cache in another folder, such as a mounted drive, that grows while the cache is built."""

from pathlib import Path

from cache_tools.errors import CometError
from cache_tools.store.copying import copy_sealed, copy_shard
from cache_tools.store.reader import Cache


class Push:
    """Copies what was sealed once and then whole shards, each a sound cache itself at every moment.

    Raises CometError for anything but a folder, and as `copy_sealed` and `copy_shard` do.
    """

    def __init__(self, cache: Cache, destination: str) -> None:
        self.cache, self.folder = cache, local_folder(destination)

    def everything(self) -> None:
        """The sealed files and every committed shard, as far as they are not there yet."""
        copy_sealed(self.cache, self.folder, self.cache.extent)
        for group in self.cache.specs:
            for shard in self.cache.extent.indices(group):
                self.shard(group, shard)

    def shard(self, group: str, shard: int) -> None:
        """One shard, once it is committed."""
        copy_shard(self.cache, self.folder, group, shard, self.cache.extent.arrays)


def local_folder(url: str) -> Path:
    """Raises CometError for anything but a folder."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return Path(url)
    if scheme != "file":
        raise CometError(
            f"--push-to {url}: expected a folder, or file://…; `comet-cache push` goes elsewhere", exit_code=2
        )
    return Path(rest)
