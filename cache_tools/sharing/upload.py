"""Pushing a cache while it is built: each shard is uploaded as soon as it is committed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from queue import Queue
from threading import Condition, Event, Thread

from tqdm import tqdm

from cache_tools.errors import CometError
from cache_tools.interrupts import StoppedAtOnce
from cache_tools.settings import Part
from cache_tools.sharing.card import CARD, MARK, MAX_CARD_BYTES, card
from cache_tools.sharing.concurrent import retry
from cache_tools.sharing.listing import read_listing
from cache_tools.sharing.locations.folder import Folder
from cache_tools.sharing.locations.location import Location
from cache_tools.sharing.locations.remote import RetryPolicy
from cache_tools.sharing.plan import Plan, plan
from cache_tools.sharing.transfer import Transfer
from cache_tools.store.ledger import ShardKey
from cache_tools.store.reader import Cache

UPLOADS_AT_ONCE = 4  # shards on their way: on small files one would mostly wait for answers


@contextmanager
def pushing(
    cache: Cache, to: Location, before: Sequence[ShardKey], policy: RetryPolicy, stop: Event
) -> Iterator[Callable[[str, int], None]]:
    """Bring the beginning of a cache to a location, then those of the shards `before` that are not there, and those
    that are committed in the block.

    Gives what is to be called with each of these; it returns at once. When a shard cannot be moved `stop` is set, and
    the error raised at the end of the block. The end waits for what is on its way, also when the block has failed, but
    not for StoppedAtOnce or KeyboardInterrupt. Raises CometError as `plan` and `Transfer.run` do.
    """

    def failed() -> None:
        tqdm.write(f"pushing to {to.name} has failed; no further shard is begun")
        stop.set()

    planned = plan(read_listing(Folder(cache.root), policy), to, Part(), policy)
    transfer = Transfer(planned, policy, lambda size: None)
    with to.staging():
        transfer.begin()
        uploads = Uploads(cache, transfer, failed)
        try:
            for shard in before:
                if shard not in planned.kept:
                    uploads.add(*shard)
            yield uploads.add
            uploads.finish()
        except StoppedAtOnce:
            raise
        except Exception:
            uploads.wait()
            raise
        finally:
            uploads.close()
        leave_card(there := what_is_there(cache, to, policy), policy)
    lacking = len(there.missing)
    state = f"{lacking} shards are not there yet" if lacking else f"complete, cache id {there.cache_id}"
    tqdm.write(f"{to.name}: {state}")


def what_is_there(cache: Cache, to: Location, policy: RetryPolicy) -> Plan:
    """A plan of nothing: what a location holds by now, other workers' shards included."""
    planned = plan(read_listing(Folder(cache.root), policy), to, Part(), policy)
    return replace(planned, source=replace(planned.source, records=planned.kept), lacking={})


def leave_card(planned: Plan, policy: RetryPolicy) -> None:
    """Writes the card at the destination, unless somebody else has written one."""
    cache, to, stop = planned.source.cache, planned.destination, Event()
    there = retry(lambda: to.read(CARD, MAX_CARD_BYTES), policy, stop)
    if there is not None and MARK.encode() not in there:
        tqdm.write(f"{to.name}/{CARD} is not comet-cache's and stays as it is")
        return
    text = card(cache, planned.extent, planned.whole_size, planned.cache_id, planned.attached_id)
    retry(lambda: to.write(CARD, [text.encode()]), policy, stop)


class Uploads:
    """Threads that move committed shards, in the order in which they are added; the first failure stops them all.

    The queue holds names of shards, never their content, and has room for all of a cache, so that nobody waits who
    adds one. The threads are daemons: what a network call still waits for does not hold up the end of the process.
    """

    def __init__(self, cache: Cache, transfer: Transfer, failed: Callable[[], object]) -> None:
        self.cache, self.transfer, self.failed = cache, transfer, failed
        shards = sum(len(cache.extent.indices(group)) for group in cache.specs)
        self.queue: Queue[ShardKey | None] = Queue(shards + UPLOADS_AT_ONCE)
        self.left = 0  # shards that were added and neither arrived nor failed
        self.error: BaseException | None = None
        self.changed = Condition()
        for number in range(UPLOADS_AT_ONCE):
            Thread(target=self.work, name=f"push {number}", daemon=True).start()

    def add(self, group: str, shard: int) -> None:
        """One shard, once it is committed."""
        with self.changed:
            self.left += 1
        self.queue.put(ShardKey(group, shard))

    def work(self) -> None:
        while (shard := self.queue.get()) is not None:
            error = self.upload(shard)
            with self.changed:
                is_first, self.error = error is not None and self.error is None, self.error or error
                self.left -= 1
                self.changed.notify_all()
            if is_first:
                self.failed()

    def upload(self, shard: ShardKey) -> BaseException | None:
        """Moves one shard. Returns the error when it cannot be."""
        if self.transfer.stop.is_set():
            return None
        try:
            record = self.cache.record(*shard)
            assert record is not None, f"shard {shard} is not committed"
            self.transfer.move(shard, record, self.cache.extent.arrays)
        except BaseException as error:  # it is for the thread that builds
            self.transfer.stop.set()
            return error
        return None

    def wait(self) -> None:
        """Returns when every shard that was added has arrived, or one has failed."""
        with self.changed, tqdm(desc="push", total=self.left, unit="shard", disable=None) as bar:
            if self.left:
                tqdm.write(f"pushing the last {self.left} shards to {self.transfer.plan.destination.name}")
            while self.left:
                self.changed.wait()
                bar.update(bar.total - self.left - bar.n)

    def finish(self) -> None:
        """Waits. Raises CometError when a shard could not be moved."""
        self.wait()
        if isinstance(self.error, CometError):
            kept = f"{self.cache.root} keeps what is built"
            raise CometError(f"--push-to {self.error}; {kept}", exit_code=self.error.exit_code) from self.error
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Lets the threads go; what they are moving ends with the next block."""
        self.transfer.stop.set()
        for _ in range(UPLOADS_AT_ONCE):
            self.queue.put(None)
