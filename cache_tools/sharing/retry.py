"""Retries after failures that may pass, and several transfers at once."""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TypeVar

from tqdm import tqdm

from cache_tools.errors import CometError

THREADS = 8
SHORTEST_WARNED = 1.0  # seconds; shorter pauses pass without a line
Item = TypeVar("Item")
Result = TypeVar("Result")


class Unreachable(CometError):
    """A failure that may pass: worth another try."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}; run the same command again to continue")
        self.problem = problem


def _rate_limited(every: float = 5.0) -> Callable[[str], None]:
    """Return a function that writes a line to stderr, at most one in `every` seconds; the others are dropped."""
    last = -every

    def warn(line: str) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= every:
            last = now
            tqdm.write(line, file=sys.stderr)

    return warn


@dataclass(frozen=True)
class RetryPolicy:
    """How long to wait for a server, and how often to try again.

    `timeout`: seconds without a byte. `min_rate`: bytes a second, for the time limit of a whole file. `retries`: tries
    after the first. `pause`: seconds before the first of them, doubled each time. `warn`: gets a line before a long
    pause.
    """

    timeout: float = 30.0
    min_rate: float = 16 * 2**10
    retries: int = 5
    pause: float = 1.0
    warn: Callable[[str], object] = field(default_factory=_rate_limited, compare=False)

    def time_limit(self, size: int) -> float:
        """Seconds allowed for a file of `size` bytes."""
        return 2 * self.timeout + size / self.min_rate


def retry(action: Callable[[], Result], policy: RetryPolicy, stop: threading.Event) -> Result:
    """Return the result of `action`, called again after Unreachable as the policy allows.

    Raises the last error, also when `stop` is set during a pause.
    """
    for attempt in range(policy.retries):
        try:
            return action()
        except Unreachable as error:
            pause = policy.pause * 2**attempt
            if pause >= SHORTEST_WARNED:
                policy.warn(f"{error.problem}; trying again in {pause:g} s")
            if stop.wait(pause):
                raise
    return action()


def map_concurrently(work: Callable[[Item], Result], items: Sequence[Item], stop: threading.Event) -> list[Result]:
    """Return `work` of every item, in order, computed by THREADS threads.

    After the first error `stop` is set and no further item is started; it is raised once the running ones have ended.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        futures: list[Future[Result]] = []
        try:
            futures += [pool.submit(work, item) for item in items]
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]
