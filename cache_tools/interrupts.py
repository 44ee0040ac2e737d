"""SIGINT and SIGTERM: end work in an orderly way at the first, at once at the second."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from cache_tools.errors import noop


@contextmanager
def stop_on_signal(
    first: Callable[[], object] | None, message: str, close: Callable[[], object] = noop
) -> Iterator[None]:
    """Call `first` at the first signal, and raise KeyboardInterrupt with `message` at the second, after `close`.

    Without `first` the first signal already raises. It is not a CometError, so that no handler of errors catches it: it
    says nothing about the work that it interrupts. Does nothing in a thread that cannot receive signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    was_asked = first is None

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal was_asked
        if was_asked or first is None:
            close()
            raise KeyboardInterrupt(message)
        was_asked = True
        first()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
