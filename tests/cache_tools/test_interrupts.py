"""What a signal raises, and who may not take it for an error."""

import os
import signal
import threading
from contextlib import suppress

import pytest

from cache_tools.errors import CometError
from cache_tools.interrupts import stop_on_signal


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_is_raised_after_what_it_closes(number: signal.Signals) -> None:
    seen: list[str] = []
    before = signal.getsignal(number)
    with stop_on_signal(lambda: seen.append("first"), "stopped at once", lambda: seen.append("close")):
        send(number)
        assert seen == ["first"]
        with pytest.raises(KeyboardInterrupt, match=r"^stopped at once$"):
            send(number)
    assert seen == ["first", "close"]
    assert signal.getsignal(number) is before


def careless() -> None:
    """A handler of errors around what a signal interrupts."""
    with suppress(CometError, Exception):
        send(signal.SIGINT)


def test_no_handler_of_errors_takes_a_signal_for_one() -> None:
    with stop_on_signal(None, "stopped"), pytest.raises(KeyboardInterrupt, match=r"^stopped$"):
        careless()


def test_another_thread_changes_no_handler() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def work() -> None:
        with stop_on_signal(None, "stopped"):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(5)
    assert seen == [before]
