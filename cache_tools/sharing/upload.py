"""Push a cache while it is built: each shard is uploaded as soon as it is committed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from queue import Queue
from threading import Condition, Event, Thread

from tqdm import tqdm

from cache_tools.errors import CometError, noop
from cache_tools.progress import show_progress
from cache_tools.settings import Part
from cache_tools.sharing.card import MARK, MAX_CARD_BYTES, card
from cache_tools.sharing.listing import read_listing
from cache_tools.sharing.locations.folder import Folder
from cache_tools.sharing.locations.location import Location
from cache_tools.sharing.plan import Plan, plan
from cache_tools.sharing.retry import RetryPolicy, retry
from cache_tools.sharing.transfer import Transfer
from cache_tools.store.ledger import CARD, ShardKey
from cache_tools.store.reader import Cache

UPLOAD_THREADS = 4  # one shard each: with small files a single thread would mostly wait for answers


@contextmanager
def pushing(
    cache: Cache, to: Location, before: Sequence[ShardKey], policy: RetryPolicy, stop: Event
) -> Iterator[Callable[[str, int], None]]:
    """Push a cache to a location while the block builds it: sealed files, the committed shards `before`, then new ones.

    Yields a function to call with group and number of each committed shard; it returns at once. If an upload fails,
    `stop` is set, and the error is raised at the end of the block. The end waits for pending uploads, also after an
    error of the block, but not after KeyboardInterrupt. Raises CometError as `plan` and `Transfer.run` do.
    """

    def on_failure() -> None:
        tqdm.write(f"pushing to {to.name} failed; no further shard is started")
        stop.set()

    planned = plan(read_listing(Folder(cache.root), policy), to, Part(), policy)
    transfer = Transfer(planned, policy, noop)
    with to.staging():
        transfer.begin()
        uploads = Uploads(cache, transfer, on_failure)
        try:
            for shard in before:
                if shard not in planned.current_records:
                    uploads.add(*shard)
            yield uploads.add
            uploads.finish()
        except Exception:
            uploads.wait()
            raise
        finally:
            uploads.close()
        write_card(current := _current_state(cache, to, policy), policy)
    missing = len(current.missing)
    state = f"{missing} shards are not there yet" if missing else f"complete, cache id {current.cache_id}"
    tqdm.write(f"{to.name}: {state}")


def _current_state(cache: Cache, to: Location, policy: RetryPolicy) -> Plan:
    """Return a plan to copy nothing: what a location holds by now, shards of other workers included."""
    planned = plan(read_listing(Folder(cache.root), policy), to, Part(), policy)
    return replace(planned, source=replace(planned.source, records=planned.current_records), lacking={})


def write_card(planned: Plan, policy: RetryPolicy) -> None:
    """Write the card at the destination, unless it has one that comet-cache did not write."""
    cache, to, stop = planned.source.cache, planned.destination, Event()
    current = retry(lambda: to.read(CARD, MAX_CARD_BYTES), policy, stop)
    if current is not None and MARK.encode() not in current:
        tqdm.write(f"{to.name}/{CARD} was not written by comet-cache and is kept")
        return
    text = card(cache, planned.extent, planned.whole_size, planned.cache_id, planned.attached_id, planned.missing)
    retry(lambda: to.write(CARD, [text.encode()]), policy, stop)


class Uploads:
    """Threads that upload committed shards in the order in which they are added; the first failure stops them all.

    The queue holds keys of shards, never their content, and has room for the whole cache, so that `add` never blocks.
    The threads are daemons: a network call that hangs does not delay the end of the process.
    """

    def __init__(self, cache: Cache, transfer: Transfer, on_failure: Callable[[], object]) -> None:
        self.cache, self.transfer, self.on_failure = cache, transfer, on_failure
        shards = sum(len(cache.extent.indices(group)) for group in cache.specs)
        self.queue: Queue[ShardKey | None] = Queue(shards + UPLOAD_THREADS)
        self.pending = 0  # shards added, and neither uploaded nor failed
        self.error: BaseException | None = None
        self.changed = Condition()
        for number in range(UPLOAD_THREADS):
            Thread(target=self._work, name=f"push {number}", daemon=True).start()

    def add(self, group: str, shard: int) -> None:
        """Queue one committed shard."""
        with self.changed:
            self.pending += 1
        self.queue.put(ShardKey(group, shard))

    def _work(self) -> None:
        while (shard := self.queue.get()) is not None:
            error = self._upload(shard)
            with self.changed:
                is_first = error is not None and self.error is None
                self.error = self.error or error
                self.pending -= 1
                self.changed.notify_all()
            if is_first:
                self.on_failure()

    def _upload(self, shard: ShardKey) -> BaseException | None:
        """Upload one shard, and return the error if that fails."""
        if self.transfer.stop.is_set():
            return None
        try:
            record = self.cache.record(*shard)
            assert record is not None, f"shard {shard} is not committed"
            self.transfer.copy_arrays(shard, record, self.cache.extent.arrays)
        except BaseException as error:  # `finish` raises it in the thread that builds
            self.transfer.stop.set()
            return error
        return None

    def wait(self) -> None:
        """Return when no upload is pending."""
        with self.changed, show_progress(what="push", unit="shard", total=self.pending) as bar:
            if self.pending:
                tqdm.write(f"pushing the last {self.pending} shards to {self.transfer.plan.destination.name}")
            while self.pending:
                self.changed.wait()
                bar.update(bar.total - self.pending - bar.n)

    def finish(self) -> None:
        """Wait for all uploads. Raises CometError if one failed."""
        self.wait()
        if isinstance(self.error, CometError):
            kept = f"{self.cache.root} keeps what is built"
            raise CometError(f"--push-to {self.error}; {kept}", exit_code=self.error.exit_code) from self.error
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Stop the threads; running uploads end with their next block."""
        self.transfer.stop.set()
        for _ in range(UPLOAD_THREADS):
            self.queue.put(None)
