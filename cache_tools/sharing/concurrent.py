"""Several transfers at once: the first that fails stops all, with its own error; and another try where one may help."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from cache_tools.sharing.locations.remote import RetryPolicy, Unreachable

THREADS = 8
NOTICED_SECONDS = 1.0
Item = TypeVar("Item")
Result = TypeVar("Result")


def map_concurrently(work: Callable[[Item], Result], items: Sequence[Item], stop: threading.Event) -> list[Result]:
    """`work` on every item, several at a time; the results in the order of the items.

    When one fails, `stop` is set, what has not begun never begins, and its error is raised once the others have ended.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]


def retry(action: Callable[[], Result], policy: RetryPolicy, stop: threading.Event) -> Result:
    """What `action` gives, if need be after several tries with growing pauses. Raises its last error."""
    for attempt in range(policy.retries):
        try:
            return action()
        except Unreachable as error:
            wait = policy.pause * 2**attempt
            if wait >= NOTICED_SECONDS:
                policy.say(f"{error.what}; trying again in {wait:g} s")
            if stop.wait(wait):
                raise
    return action()
