"""Moving a cache from place to place: whatever stops it, what has arrived is whole, and is not moved again.

What was sealed comes first, the seal after the files that it lists; of each shard the files, then its commit record;
the extent last.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

from cache_tools.errors import CometError
from cache_tools.sharing.flight import in_flight, tried
from cache_tools.sharing.plan import ROOT, Plan, Shard
from cache_tools.sharing.remote import Patience, Unreachable
from cache_tools.store.ledger import EXTENT, SEAL, FileRecord, shard_record_path
from cache_tools.store.records import with_checksum

Moved = Callable[[int], object]
"""Told of bytes as they come; of negative ones when they have to come again."""


class Stopped(CometError):
    """Another file failed."""


@dataclass
class Transfer:
    """The doing of a plan."""

    plan: Plan
    patience: Patience
    moved: Moved
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Moves everything. Raises CometError when a file is not what the ledger describes, or a place refuses."""
        source = self.plan.source
        if not self.plan.is_sealed:
            files = source.cache.seal.files
            self.file(ROOT, files[ROOT])  # first: what is half there is taken for this cache from then on
            in_flight(lambda path: self.file(path, files[path]), [path for path in files if path != ROOT], self.stop)
            self.write(SEAL, source.metadata[SEAL])
        in_flight(self.shard, list(self.plan.lacking), self.stop)
        if not self.plan.has_extent:
            self.write(EXTENT, with_checksum(self.plan.extent.to_json()))

    def shard(self, shard: Shard) -> None:
        """The files that a shard lacks, and then its record."""
        record, specs = self.plan.source.records[shard], self.plan.source.cache.specs[shard[0]]
        for name in self.plan.lacking[shard]:
            self.file(specs[name].chunk_path(shard[1]), record.files[name])
        if shard not in self.plan.kept:
            self.write(shard_record_path(*shard), with_checksum(record.to_json()))

    def file(self, path: str, record: FileRecord) -> None:
        """One file, unless it is there."""
        if self.plan.destination.has_exactly(path, record.size, record.sha256):
            self.moved(record.size)
            return
        tried(lambda: self.try_file(path, record), self.patience, self.stop)

    def try_file(self, path: str, record: FileRecord) -> None:
        source = self.plan.source.place
        come = 0

        def count(size: int) -> None:
            nonlocal come
            come += size
            self.moved(size)
            if self.stop.is_set():
                raise Stopped(f"{source.name}/{path}: stopped")

        try:
            with closing(source.blocks(path, record.size)) as blocks:
                self.plan.destination.write(path, proven(blocks, record, f"{source.name}/{path}", count))
        except Unreachable:
            self.moved(-come)
            raise

    def write(self, path: str, data: bytes) -> None:
        tried(lambda: self.plan.destination.write(path, [data]), self.patience, self.stop)


def proven(blocks: Iterable[bytes], record: FileRecord, where: str, count: Moved) -> Iterator[bytes]:
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
        raise Unreachable(f"{where}: ended after {size} of {record.size} bytes; run the same command again to go on")
    if digest.hexdigest() != record.sha256:
        raise CometError(
            f"{where}: {size} bytes that are not those of the ledger (sha256 {digest.hexdigest()[:12]}…, expected "
            f"{record.sha256[:12]}…); what is there is damaged: `comet-cache verify` says so where it lies"
        )
