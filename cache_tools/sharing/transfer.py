"""Copy a cache from one location to another. A copy can be stopped at any time and run again.

Order of writes: the sealed files, then the seal; for each shard its files, then its commit record; the extent last, or
before the shards for a cache that is being built. Several transfers of one cache may run at once.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from tqdm import tqdm

from cache_tools.errors import CometError
from cache_tools.progress import show_progress
from cache_tools.sharing.listing import ROOT, read_extent, read_record
from cache_tools.sharing.mistaken import HEAD, mistaken
from cache_tools.sharing.plan import Plan, absent_arrays, another_version
from cache_tools.sharing.retry import RetryPolicy, Unreachable, map_concurrently, retry
from cache_tools.store.ledger import EXTENT, SEAL, FileRecord, ShardKey, ShardRecord, shard_record_path
from cache_tools.store.records import MAX_RECORD_BYTES, with_checksum

COMMITS = 3  # tries to commit a shard of which another version comes at the same time
Progress = Callable[[int], object]
"""Called with the number of bytes that arrived; with a negative number if they have to be read again."""


@dataclass
class Transfer:
    """The execution of a plan. `skipped` are sealed files that are not copied, since they are read when needed."""

    plan: Plan
    policy: RetryPolicy
    progress: Progress
    skipped: frozenset[str] = frozenset()
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Copy everything. Raises CometError if a file differs from its record, or a location refuses."""
        self.copy_sealed()
        map_concurrently(self.copy_shard, list(self.plan.lacking), self.stop)
        self.write_extent()

    def begin(self) -> None:
        """Copy the sealed files and the extent, so that the destination can be pulled while `copy_arrays` adds shards.

        Shards that lack only some arrays are completed before the extent, which promises all arrays of each record.
        """
        self.copy_sealed()
        incomplete = [shard for shard in self.plan.lacking if shard in self.plan.current_records]
        map_concurrently(self.copy_shard, incomplete, self.stop)
        self.write_extent()

    def copy_sealed(self) -> None:
        source = self.plan.source
        files = source.cache.seal.files
        if self.plan.is_sealed:
            map_concurrently(lambda path: self.copy_file(path, files[path]), self.plan.damaged, self.stop)
            return
        self.require_own_root()
        self.copy_file(ROOT, files[ROOT])  # first: from then on the destination is taken for this cache
        others = [path for path in files if path != ROOT and path not in self.skipped]
        with self.plan.destination.exclusive():  # caches with the same root may have other starts
            self.require_own_root()
            map_concurrently(lambda path: self.copy_file(path, files[path]), others, self.stop)
            self.require_own_root()
            self._write(SEAL, source.metadata[SEAL])
            self.require_own_root()

    def require_own_root(self) -> None:
        """Raise CometError if another cache was started at the destination since the plan was made."""
        source, name = self.plan.source, self.plan.destination.name
        if any(self._read(path) not in (None, source.metadata[path]) for path in (ROOT, SEAL)):
            raise CometError(f"{name}: another cache was started there meanwhile; choose another location", exit_code=2)

    def write_extent(self) -> None:
        """Raise CometError if the destination was given another extent since the plan was made."""
        plan = self.plan
        if plan.current_extent == plan.extent:
            return
        with plan.destination.exclusive():
            current = read_extent(plan.destination, plan.source.cache, self.policy)
            if current == plan.extent:
                return
            if current != plan.current_extent:
                raise CometError(
                    f"{plan.destination.name}: another part of this cache was copied there meanwhile; run the same "
                    "command again to add this one"
                )
            self._write(EXTENT, with_checksum(plan.extent.to_json()))

    def copy_shard(self, shard: ShardKey) -> None:
        """Copy what a shard lacks by the plan."""
        self.copy_arrays(shard, self.plan.source.records[shard], self.plan.lacking[shard])

    def copy_arrays(self, shard: ShardKey, record: ShardRecord, names: Sequence[str]) -> None:
        """Copy the files of these arrays of a shard, then its commit record.

        A shard that another transfer committed since the plan was made is kept.
        """
        source, destination = self.plan.source, self.plan.destination
        is_committed, lacking = shard in self.plan.current_records, list(names)
        if not is_committed and (current := self._read_record(shard)) is not None:
            lacking = absent_arrays(destination, source.cache, current, lacking, self.policy, self.stop)
            if lacking and current != record:
                raise another_version(source.location, destination, shard)
            self.progress(sum(record.files[name].size for name in names if name not in lacking))
            is_committed = True
        self.copy_files(record, lacking)
        if not is_committed:
            self.commit(shard, record, lacking)

    def commit(self, shard: ShardKey, record: ShardRecord, names: Sequence[str]) -> None:
        """Write the commit record of a shard whose files are at the destination.

        If another transfer brings another version at the same time, files may be mixed: the one that finds the other's
        record copies all its files again, then its own record. Raises CometError if its record is not there in the end.
        """
        with self.plan.destination.exclusive():
            for _ in range(COMMITS):
                if self._read_record(shard) not in (None, record):
                    self.copy_files(record, names)
                self._write(shard_record_path(*shard), with_checksum(record.to_json()))
                if self._read_record(shard) in (None, record):  # none: a server that lags behind
                    return
        raise CometError(
            f"{self.plan.destination.name}: another transfer is copying another version of shard {shard}; run the same "
            "command again when that one has ended"
        )

    def copy_files(self, record: ShardRecord, names: Iterable[str]) -> None:
        specs = self.plan.source.cache.specs[record.group]
        for name in names:
            self.copy_file(specs[name].chunk_path(record.shard), record.files[name])

    def copy_file(self, path: str, record: FileRecord) -> None:
        """Copy one file, unless the destination has it."""
        if self.plan.destination.has_exactly(path, record.size, record.sha256):
            self.progress(record.size)
            return
        retry(lambda: self._try_file(path, record), self.policy, self.stop)

    def _try_file(self, path: str, record: FileRecord) -> None:
        source = self.plan.source.location
        done = 0

        def count(size: int) -> None:
            nonlocal done
            done += size
            self.progress(size)
            if self.stop.is_set():
                raise CometError(f"{source.name}/{path}: stopped, as another file failed")

        try:
            with closing(source.blocks(path, record.size)) as blocks:
                self.plan.destination.write(path, verified(blocks, record, f"{source.name}/{path}", count))
        except Unreachable:
            self.progress(-done)
            raise

    def _read_record(self, shard: ShardKey) -> ShardRecord | None:
        """Return the destination's present commit record of a shard."""
        return read_record(self.plan.destination, self.plan.source.cache, shard, self.policy, self.stop)

    def _read(self, path: str) -> bytes | None:
        return retry(lambda: self.plan.destination.read(path, MAX_RECORD_BYTES), self.policy, self.stop)

    def _write(self, path: str, data: bytes) -> None:
        retry(lambda: self.plan.destination.write(path, [data]), self.policy, self.stop)


def verified(blocks: Iterable[bytes], record: FileRecord, name: str, progress: Progress) -> Iterator[bytes]:
    """Yield the blocks of a file as they arrive, and compare size and SHA-256 with its record; `name` is for messages.

    Raises CometError as soon as there are too many bytes, and at the end if they are too few or the hash differs. A
    connection that breaks is an error of `blocks`.
    """
    digest, size, head = hashlib.sha256(), 0, b""

    def wrong(found: str) -> CometError:
        return CometError(f"{name}: {mistaken(head, name.endswith('.json')) or found}")

    for block in blocks:
        size += len(block)
        head += block[: HEAD - len(head)]
        if size > record.size:
            raise wrong(f"more than the {record.size} bytes of the ledger; the file there is damaged")
        digest.update(block)
        progress(len(block))
        yield block
    if size < record.size:
        raise wrong(
            f"{size} of the {record.size} bytes of the ledger; the file there is too short, as after an upload that "
            "broke off; copy it there again"
        )
    if digest.hexdigest() != record.sha256:
        raise wrong(
            f"sha256 {digest.hexdigest()[:12]}…, but the ledger has {record.sha256[:12]}…; the file there is "
            "damaged, as `comet-cache verify` on that cache will confirm"
        )


def run_plan(plan: Plan, name: str, policy: RetryPolicy) -> None:
    """Copy everything, with a progress bar in bytes. Raises CometError as `Transfer.run` does."""
    tqdm.write(f"{tqdm.format_sizeof(plan.size, 'B')} to copy" if plan.size else "nothing to copy")
    lock = threading.Lock()
    with show_progress(what=name, unit="B", total=plan.size, unit_scale=True) as bar:

        def progress(size: int) -> None:
            with lock:
                bar.update(size)

        Transfer(plan, policy, progress).run()
