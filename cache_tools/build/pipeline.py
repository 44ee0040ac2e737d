"""Stage 1b: the pipeline rows → teacher → store.

One thread reads shards ahead and cuts them into batches, the main thread queues batches on the device and collects the
results, one thread encodes and writes whole shards. The next batch is queued before the results of the last are
fetched, so a GPU has work while the host processes them.
"""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from cache_tools.build.workers import ALONE, Worker
from cache_tools.errors import noop
from cache_tools.progress import show_progress
from cache_tools.signals import TOKEN_ARRAYS
from cache_tools.store.ledger import ShardKey
from cache_tools.store.reader import Cache
from cache_tools.store.staging import STAGING, claimed_folder
from cache_tools.store.writer import commit_shard
from cache_tools.teacher.device import numerics, smaller_batch
from cache_tools.teacher.forward import DeviceTimer, HostBatch, Launched, TeacherPass, collect, host_batch, seen_mask
from cache_tools.teacher.model import Teacher

ENCODING_AT_ONCE = 1  # shards queued for the writer, held in memory beside the current shard
LAUNCHED_AT_ONCE = 2  # batches on the device: the running one and the next


class Throughput:
    """Tokens and rows that the teacher has processed, the time from first to last batch, and the device's busy time."""

    def __init__(self) -> None:
        self.tokens = self.rows = 0
        self.seconds = self.busy_seconds = 0.0
        self.first: DeviceTimer | None = None

    def add(self, done: Launched) -> None:
        self.first = self.first or done.began
        self.tokens += done.batch.tokens
        self.rows += len(done.batch.length)
        self.seconds = self.first.until(done.finished)
        self.busy_seconds += done.began.until(done.finished)

    @property
    def idle(self) -> float:
        """The share of the time from the first batch to the last in which the device was idle."""
        return 1 - self.busy_seconds / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        speed = self.tokens / self.seconds if self.seconds else 0.0
        return f"{self.tokens:,} tokens in {self.seconds:,.1f} s ({speed:,.0f} a second), device idle {self.idle:.1%}"


class ShardBuffer:
    """The token rows of a shard, cut into batches for the teacher, and the teacher's arrays collected so far."""

    def __init__(self, cache: Cache, key: ShardKey, batch_size: int, pinned: bool) -> None:
        self.key, self.recipe, self.pinned = key, cache.recipe, pinned
        self.tokens, self.token_files = cache.read_tokens(*key)
        self.rows, self.token_count = len(self.tokens["length"]), int(self.tokens["length"].sum())
        specs = {name: spec for name, spec in cache.specs[key.group].items() if name not in TOKEN_ARRAYS}
        self.arrays = {name: np.empty((self.rows, *spec.shape[1:]), spec.dtype) for name, spec in specs.items()}
        self.cut(batch_size)

    @property
    def tokens_left(self) -> int:
        """The tokens of the rows that the teacher has not processed."""
        return int(self.tokens["length"][self.collected_rows :].sum())

    def cut(self, batch_size: int) -> None:
        """Start over with batches of `batch_size` rows."""
        self.batch_size, self.collected_rows, self.launched = batch_size, 0, False
        self.batches: list[HostBatch] = []
        for start in range(0, self.rows, batch_size):
            tokens = {name: array[start : start + batch_size] for name, array in self.tokens.items()}
            self.batches.append(host_batch(self.recipe, tokens, self.pinned))

    def put(self, part: dict[str, NDArray]) -> bool:
        """Store the arrays of the next batch. Return whether the shard is complete.

        Raises ValueError unless they are all the arrays of a shard, in their dtypes: arrays start uninitialised.
        """
        found = {name: array.dtype for name, array in part.items()}
        expected = {name: array.dtype for name, array in self.arrays.items()}
        if found != expected:
            raise ValueError(f"shard {self.key}: expected arrays {expected}, found {found}")
        rows = slice(self.collected_rows, self.collected_rows + len(next(iter(part.values()))))
        for name, array in part.items():
            self.arrays[name][rows] = array
        self.collected_rows = rows.stop
        return self.collected_rows == self.rows


def missing_shards(cache: Cache, worker: Worker = ALONE) -> list[ShardKey]:
    """Return the shards that this worker has yet to build, validation first, to measure partial caches on."""
    return [key for key in _worker_shards(cache, worker) if cache.record(*key) is None]


def committed_shards(cache: Cache, worker: Worker) -> list[ShardKey]:
    """Return the shards of this worker that are committed."""
    return [key for key in _worker_shards(cache, worker) if cache.record(*key) is not None]


def _worker_shards(cache: Cache, worker: Worker) -> list[ShardKey]:
    keys = sorted(cache.extent.keys(), key=lambda key: key.group, reverse=True)  # stable: shards keep their order
    return [key for position, key in enumerate(keys) if worker.takes(position)]


def fill(
    cache: Cache,
    teacher: Teacher,
    device: torch.device,
    stop: threading.Event,
    worker: Worker = ALONE,
    committed: Callable[[str, int], None] = noop,
) -> Throughput:
    """Run the teacher over the worker's missing shards, calling `committed` after each in the writer thread.

    Returns early, after the current shard, once `stop` is set. If memory runs out, the shard and all after it are
    computed in batches of half the size; the commit record holds the size.
    An error in any thread ends the build with that error; no thread outlives the call.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dtype, batch_size = getattr(torch, cache.settings["dtype"]), cache.settings["batch_size"]
    seen = seen_mask(cache.vocabulary.id, cache.recipe.vocab_size)
    teacher_pass = TeacherPass(teacher.to(device, dtype), cache.recipe, seen)
    pending = missing_shards(cache, worker)
    launched: deque[tuple[ShardBuffer, Launched]] = deque()
    writing: deque[Future[None]] = deque()
    done = Throughput()
    with (
        claimed_folder(cache.root, STAGING) as staging,
        ThreadPoolExecutor(1, "read") as reader,
        ThreadPoolExecutor(1, "write") as writer,
        _progress_bar(cache, pending, worker) as progress,
    ):

        def read_ahead(index: int) -> list[Future[ShardBuffer]]:
            pinned = device.type == "cuda"
            return [reader.submit(ShardBuffer, cache, key, batch_size, pinned) for key in pending[index : index + 1]]

        def write(shard: ShardBuffer) -> None:
            record = numerics(device, dtype, shard.batch_size)
            commit_shard(cache.root, staging, cache.recipe, *shard.key, shard.arrays, shard.token_files, record)
            committed(*shard.key)

        def collect_until(left: int) -> None:
            while len(launched) > left:
                shard, oldest = launched.popleft()
                if shard.put(collect(oldest)):
                    writing.append(writer.submit(write, shard))
                done.add(oldest)
                progress.update(oldest.batch.tokens)
            while len(writing) > ENCODING_AT_ONCE:
                writing.popleft().result()

        ahead = read_ahead(0)
        for index in range(len(pending)):
            if stop.is_set():
                break
            shard = ahead.pop().result()
            ahead = read_ahead(index + 1)
            if shard.batch_size > batch_size:  # it was cut before memory ran out
                shard.cut(batch_size)
            while not shard.launched:
                try:
                    for batch in shard.batches:
                        launched.append((shard, teacher_pass.launch(batch)))
                        collect_until(LAUNCHED_AT_ONCE - 1)
                        if stop.is_set():  # the time that the bar has left is that of this shard
                            progress.total = progress.n + shard.tokens_left
                    shard.launched = True
                except RuntimeError as error:
                    batch_size = smaller_batch(error, shard.batch_size)
                    progress.update(shard.tokens_left - shard.token_count)
                    launched = deque((s, batch) for s, batch in launched if s is not shard)
                    shard.cut(batch_size)
        collect_until(0)
        while writing:
            writing.popleft().result()
    return done


def _progress_bar(cache: Cache, pending: list[ShardKey], worker: Worker) -> tqdm:
    """Return a bar in tokens that starts where an earlier run stopped."""
    recipe = cache.recipe
    todo = sum(recipe.shard_rows(*key) for key in pending) * recipe.seq_len
    total = (recipe.train_rows + recipe.validation_rows) * recipe.seq_len if worker == ALONE else todo
    return show_progress(what="teacher", unit="tok", total=total, initial=total - todo, unit_scale=True)
