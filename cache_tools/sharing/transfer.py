"""Moving a cache from location to location: whatever stops it, what has arrived is whole, and is not moved again.

What was sealed comes first, the seal after the files that it lists; of each shard the files, then its commit record;
the extent last, or, of a cache that is being built, before the shards. Several may move one cache at once.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from threading import Lock

from tqdm import tqdm

from cache_tools.errors import CometError
from cache_tools.sharing.concurrent import map_concurrently, retry
from cache_tools.sharing.listing import ROOT, extent_of, read_record
from cache_tools.sharing.locations.remote import RetryPolicy, Unreachable
from cache_tools.sharing.plan import Plan, another_version, not_there
from cache_tools.store.ledger import EXTENT, SEAL, FileRecord, ShardKey, ShardRecord, shard_record_path
from cache_tools.store.records import MAX_RECORD_BYTES, with_checksum

Moved = Callable[[int], object]
"""Told of bytes as they come; of negative ones when they have to come again."""


class Stopped(CometError):
    """Another file failed."""


@dataclass
class Transfer:
    """The doing of a plan."""

    plan: Plan
    policy: RetryPolicy
    moved: Moved
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Moves everything. Raises CometError when a file is not what the ledger describes, or a location refuses."""
        self.sealed()
        map_concurrently(self.shard, list(self.plan.lacking), self.stop)
        self.extent()

    def begin(self) -> None:
        """What was sealed, and the extent already: from then on what is there can be pulled as far as it is, and
        `move` brings the shards.

        Shards that only lack arrays come before: the extent says that what has a record has all of them.
        """
        self.sealed()
        map_concurrently(self.shard, [shard for shard in self.plan.lacking if shard in self.plan.kept], self.stop)
        self.extent()

    def sealed(self) -> None:
        if self.plan.is_sealed:
            return
        source = self.plan.source
        files = source.cache.seal.files
        self.require_own_root()
        self.file(ROOT, files[ROOT])  # first: what is half there is taken for this cache from then on
        map_concurrently(lambda path: self.file(path, files[path]), [path for path in files if path != ROOT], self.stop)
        self.require_own_root()
        self.write(SEAL, source.metadata[SEAL])

    def require_own_root(self) -> None:
        """Raises CometError when another cache was begun at the destination since the plan was made."""
        source, name = self.plan.source, self.plan.destination.name
        if any(self.read(path) not in (None, source.metadata[path]) for path in (ROOT, SEAL)):
            raise CometError(f"{name}: another cache has come there meanwhile; choose another location", exit_code=2)

    def extent(self) -> None:
        """Raises CometError when the destination was given another extent since the plan was made."""
        plan = self.plan
        if plan.there == plan.extent:
            return
        there = extent_of(plan.destination, plan.source.cache, self.policy)
        if there == plan.extent:
            return
        if there != plan.there:
            raise CometError(
                f"{plan.destination.name}: another part of this cache has come there meanwhile; run the same command "
                "again to add this one"
            )
        self.write(EXTENT, with_checksum(plan.extent.to_json()))

    def shard(self, shard: ShardKey) -> None:
        """The files that a shard lacks by the plan, and then its record."""
        self.move(shard, self.plan.source.records[shard], self.plan.lacking[shard])

    def move(self, shard: ShardKey, record: ShardRecord, names: Sequence[str]) -> None:
        """The files of these arrays of a shard, and then its record.

        A shard that another transfer has brought since the plan was made stays as it is. Where two bring different
        versions of one at once, the later one's files all come again before its record: they may lie there mixed.
        """
        source, destination = self.plan.source, self.plan.destination
        is_kept, lacking = shard in self.plan.kept, list(names)
        if not is_kept and (found := self.record(shard)) is not None:
            lacking = not_there(destination, source.cache, found, lacking, self.policy, self.stop)
            if lacking and found != record:
                raise another_version(source.location, destination, shard)
            self.moved(sum(record.files[name].size for name in names if name not in lacking))
            is_kept = True
        self.files(record, lacking)
        if is_kept:
            return
        if self.record(shard) not in (None, record):
            self.files(record, lacking)
        self.write(shard_record_path(*shard), with_checksum(record.to_json()))

    def files(self, record: ShardRecord, names: Iterable[str]) -> None:
        specs = self.plan.source.cache.specs[record.group]
        for name in names:
            self.file(specs[name].chunk_path(record.shard), record.files[name])

    def file(self, path: str, record: FileRecord) -> None:
        """One file, unless it is there."""
        if self.plan.destination.has_exactly(path, record.size, record.sha256):
            self.moved(record.size)
            return
        retry(lambda: self.try_file(path, record), self.policy, self.stop)

    def try_file(self, path: str, record: FileRecord) -> None:
        source = self.plan.source.location
        come = 0

        def count(size: int) -> None:
            nonlocal come
            come += size
            self.moved(size)
            if self.stop.is_set():
                raise Stopped(f"{source.name}/{path}: stopped")

        try:
            with closing(source.blocks(path, record.size)) as blocks:
                self.plan.destination.write(path, verified(blocks, record, f"{source.name}/{path}", count))
        except Unreachable:
            self.moved(-come)
            raise

    def record(self, shard: ShardKey) -> ShardRecord | None:
        """What the destination has of a shard by now."""
        return read_record(self.plan.destination, self.plan.source.cache, shard, self.policy, self.stop)

    def read(self, path: str) -> bytes | None:
        return retry(lambda: self.plan.destination.read(path, MAX_RECORD_BYTES), self.policy, self.stop)

    def write(self, path: str, data: bytes) -> None:
        retry(lambda: self.plan.destination.write(path, [data]), self.policy, self.stop)


def verified(blocks: Iterable[bytes], record: FileRecord, where: str, count: Moved) -> Iterator[bytes]:
    """The blocks as they come. Raises CometError as soon as they are more than the file's, and at the end when they
    are not the file; Unreachable when they are too few, as when a connection breaks."""
    digest, size = hashlib.sha256(), 0
    for block in blocks:
        size += len(block)
        if size > record.size:
            raise CometError(
                f"{where}: more than the {record.size} bytes that the ledger names; what is there is damaged"
            )
        digest.update(block)
        count(len(block))
        yield block
    if size < record.size:
        raise Unreachable(f"{where}: ended after {size} of {record.size} bytes")
    if digest.hexdigest() != record.sha256:
        raise CometError(
            f"{where}: {size} bytes that are not those of the ledger (sha256 {digest.hexdigest()[:12]}…, expected "
            f"{record.sha256[:12]}…); what is there is damaged: `comet-cache verify` says so where it lies"
        )


def carry_out(planned: Plan, name: str, policy: RetryPolicy) -> None:
    """Moves everything, under a bar in bytes. Raises CometError as `Transfer.run` does."""
    tqdm.write(f"{tqdm.format_sizeof(planned.size, 'B')} to move" if planned.size else "nothing to move")
    lock = Lock()
    with tqdm(desc=name, total=planned.size, unit="B", unit_scale=True, disable=None) as bar:

        def moved(size: int) -> None:
            with lock:
                bar.update(size)

        Transfer(planned, policy, moved).run()
