"""A copy of a cache in another folder, such as a mounted drive, that is a sound cache itself at every moment."""

import os
import uuid
from pathlib import Path

from cache_tools.errors import CometError
from cache_tools.store.layout import max_file_bytes
from cache_tools.store.ledger import EXTENT, SEAL, FileRecord, file_record, shard_record_path
from cache_tools.store.reader import Cache
from cache_tools.store.records import MAX_RECORD_BYTES, read_bounded, sync_folder, write_durably


class Push:
    """Copies what was sealed once and then whole shards, files first and the record that vouches for them last."""

    def __init__(self, cache: Cache, destination: str) -> None:
        self.cache, self.folder = cache, local_folder(destination)

    def everything(self) -> None:
        """The sealed files and every committed shard, as far as they are not there yet.

        Raises CometError when the folder holds another cache or other files, or refuses.
        """
        seal = (self.folder / SEAL, read_bounded(self.cache.root / SEAL, MAX_RECORD_BYTES))
        if seal[0].exists() and read_bounded(seal[0], MAX_RECORD_BYTES) != seal[1]:
            raise CometError(f"--push-to {self.folder}: holds another cache; choose another folder", exit_code=2)
        for path, record in self.cache.seal.files.items():
            self._copy(path, record, record.size)
        for path in (EXTENT, SEAL):
            self._copy(path, file_record(read_bounded(self.cache.root / path, MAX_RECORD_BYTES)), MAX_RECORD_BYTES)
        for group in self.cache.specs:
            for shard in self.cache.extent.indices(group):
                if self.cache.record(group, shard) is not None:
                    self.shard(group, shard)

    def shard(self, group: str, shard: int) -> None:
        """One committed shard. Where the folder has it already, perhaps of another builder, it stays as it is."""
        record = self.cache.record(group, shard)
        path = shard_record_path(group, shard)
        if record is None or (self.folder / path).exists():
            return
        for name, file in record.files.items():
            spec = self.cache.specs[group][name]
            self._copy(spec.chunk_path(shard), file, max_file_bytes(spec), uncommitted=True)
        self._copy(path, file_record(read_bounded(self.cache.root / path, MAX_RECORD_BYTES)), MAX_RECORD_BYTES)

    def _copy(self, path: str, record: FileRecord, limit: int, uncommitted: bool = False) -> None:
        """`uncommitted`: what lies there under this name belongs to a shard without a record, and may be replaced."""
        source, final = self.cache.root / path, self.folder / path
        data = read_bounded(source, limit)
        if not record.matches(data):
            raise CometError(f"{source}: not the file that the ledger describes; the cache is damaged")
        try:
            if final.exists():
                if record.matches(read_bounded(final, limit)):
                    return
                if not uncommitted:
                    raise CometError(f"--push-to {self.folder}: {path} is there and differs; choose another folder")
            part = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
            write_durably(part, data)
            os.replace(part, final)
            sync_folder(final.parent)
        except OSError as error:
            raise CometError(
                f"--push-to {self.folder}: {path} cannot be written ({error.strerror or error}); the cache itself is "
                "safe. Mend the folder and run the same command again to go on"
            ) from error


def local_folder(url: str) -> Path:
    """Raises CometError for anything but a folder."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return Path(url)
    if scheme != "file":
        raise CometError(f"--push-to {url}: expected a folder, or file://…; copy to other places yourself", exit_code=2)
    return Path(rest)
