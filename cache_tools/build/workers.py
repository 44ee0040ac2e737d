"""Several workers that build one cache: their division of the shards, and waiting for the first.

Workers share at most the folder: each takes whole shards, and the ledger lists the finished ones. A worker that dies
loses its current shard; run it again, or any other division of the same build, to continue. In folders of their own
they build parts that `comet-cache merge` joins.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from cache_tools.checks import require_types
from cache_tools.errors import CometError

SEAL_POLL_SECONDS = 1.0
Found = TypeVar("Found")


@dataclass(frozen=True)
class Worker:
    """One of `count` workers, `index` from 0. If `waits`, the first prepares the text, as for ranks of torchrun, which
    share a folder; other workers prepare it themselves unless it is prepared. Raises CometError for an index that is
    not below the count."""

    index: int = 0
    count: int = 1
    waits: bool = False

    def __post_init__(self) -> None:
        require_types(self)
        if not 0 <= self.index < self.count:
            found = f"{self.index} of {self.count}"
            raise CometError(f"worker: expected an index from 0, below the count, found {found}", exit_code=2)

    def takes(self, position: int) -> bool:
        """Return whether the shard at this position of the whole cache is this worker's."""
        return position % self.count == self.index

    def __str__(self) -> str:
        return "teacher" if self.count == 1 else f"worker {self.index + 1} of {self.count}"


ALONE = Worker()


def parse_worker(text: str | None, environment: Mapping[str, str] = os.environ) -> Worker:
    """Parse `i/n` with i from 1 to n; None means the rank that torchrun gave this process, else the only worker.

    Raises CometError for any other text.
    """
    if text is None:
        rank = int(environment.get("RANK", 0))
        return Worker(rank, int(environment.get("WORLD_SIZE", 1)), waits=rank > 0)
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise CometError(f"--worker {text}: expected i/n with i from 1 to n, such as 2/4", exit_code=2)
    return Worker(int(index) - 1, int(count))


def wait_for_seal(out: Path, elsewhere: Callable[[], Found | None] = lambda: None) -> Found | None:
    """Wait until the first worker has prepared the cache. Return None once `out` exists, else `elsewhere`'s result."""
    if not out.exists():
        tqdm.write(f"waiting for worker 1 to prepare {out}")
    while not out.exists():
        if (found := elsewhere()) is not None:
            return found
        time.sleep(SEAL_POLL_SECONDS)
    return None
