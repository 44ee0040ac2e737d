"""How a build ends that pushes its shards: after a failure, a signal or an error, with what was committed."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from helpers.pushes import HASTY, arrived, committed, what_is_at

from cache_tools import build_cache, open_cache
from cache_tools.build import destination
from cache_tools.build import pipeline as fill
from cache_tools.build.build import stop_event
from cache_tools.errors import CometError
from cache_tools.settings import BuildSettings
from cache_tools.sharing.transfer import Transfer
from cache_tools.sharing.upload import Uploads
from cache_tools.verify.verify import verify


@pytest.mark.slow
def test_an_upload_that_fails_for_good_ends_the_build(
    settings: BuildSettings, memory: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server goes away for good when the second shard comes; what the teacher works on is finished."""
    settings = replace(settings, rows_per_shard=4)
    put, tries = MemoryFileSystem.pipe_file, []

    def gone(self: Any, path: str, value: bytes, **options: Any) -> None:
        if "train/topk_id/c/1/" in path:
            tries.append(path)
            raise ConnectionError("no route to lab")
        put(self, path, value, **options)

    monkeypatch.setattr(destination, "RetryPolicy", lambda: HASTY)
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", gone)
    with slow_teacher(monkeypatch, 0.2), pytest.raises(CometError) as caught:
        build_cache(settings, push_to=memory, i_may_share_this=True)
    assert str(caught.value) == (
        f"--push-to {memory}/train/topk_id/c/1/0/0: ConnectionError no route to lab; run the same command again to "
        f"continue; {settings.out} keeps what is built"
    )
    assert len(tries) == 1 + HASTY.retries
    assert f"pushing to {memory} failed; no further shard is started\n" in capsys.readouterr().out
    built = committed(settings.out)
    cache = open_cache(settings.out)
    assert 3 <= built < sum(map(cache.recipe.shards, cache.specs)) - 3
    assert verify(settings.out).damage == []
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", put)
    cache = build_cache(settings, push_to=memory, i_may_share_this=True)
    assert what_is_at(memory) == cache.cache_id


@contextmanager
def slow_teacher(monkeypatch: pytest.MonkeyPatch, seconds: float) -> Iterator[None]:
    commit = fill.commit_shard

    def slowly(*arguments: Any) -> None:
        time.sleep(seconds)
        commit(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(fill, "commit_shard", slowly)
        yield


@contextmanager
def held_uploads(monkeypatch: pytest.MonkeyPatch, until: Callable[[], bool]) -> Iterator[None]:
    """No shard begins to move before the condition is true."""
    move = Transfer.copy_arrays

    def later(self: Transfer, *arguments: Any) -> None:
        while not until() and not self.stop.wait(0.01):
            pass
        move(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Transfer, "copy_arrays", later)
        yield


def until_waited_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Whether the build has come to its end and waits for uploads."""
    wait, is_waiting = Uploads.wait, threading.Event()

    def waits(self: Uploads) -> None:
        is_waiting.set()
        wait(self)

    monkeypatch.setattr(Uploads, "wait", waits)
    return is_waiting.is_set


@pytest.mark.slow
def test_the_teacher_does_not_wait_for_uploads(
    settings: BuildSettings, memory: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not one shard leaves before the last is built."""
    with held_uploads(monkeypatch, lambda: committed(settings.out) == 5):
        cache = build_cache(settings, push_to=memory, i_may_share_this=True)
    assert "tokens in" in capsys.readouterr().out
    assert what_is_at(memory) == cache.cache_id


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_uploads_end_and_says_so(
    settings: BuildSettings,
    memory: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    with (
        signal_after(1, settings.out, [number]),
        slow_teacher(monkeypatch, 0.2),
        held_uploads(monkeypatch, until_waited_for(monkeypatch)),
        pytest.raises(CometError, match=r"stopped with \d shards? to go"),
    ):
        build_cache(settings, push_to=memory, i_may_share_this=True)
    built = committed(settings.out)
    assert 1 <= built < 5
    assert arrived(memory) == built
    lines = capsys.readouterr().out.splitlines()
    assert f"pushing the last {built} shards to {memory}" in lines
    assert f"{memory}: {5 - built} shards are not there yet" in lines


@pytest.mark.slow
def test_a_second_signal_waits_for_no_upload(
    settings: BuildSettings, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = time.monotonic()
    with (
        signal_after(1, settings.out, [signal.SIGINT, signal.SIGINT]),
        held_uploads(monkeypatch, lambda: False),
        pytest.raises(KeyboardInterrupt, match="stopped at once; the current shard is lost"),
    ):
        build_cache(settings, push_to=memory, i_may_share_this=True)
    assert time.monotonic() - begun < 20
    assert arrived(memory) == 0
    while uploading := [thread for thread in threading.enumerate() if thread.name.startswith("push ")]:
        uploading[0].join(5)
        assert not uploading[0].is_alive()
    assert what_is_at_after(settings, memory) == open_cache(settings.out).cache_id


def what_is_at_after(settings: BuildSettings, url: str) -> str:
    build_cache(settings, push_to=url, i_may_share_this=True)
    return what_is_at(url)


@contextmanager
def signal_after(shards: int, out: Path, numbers: list[signal.Signals]) -> Iterator[None]:
    """Sends signals to this process, half a second apart, when so many shards are committed."""

    def send() -> None:
        while committed(out) < shards:
            time.sleep(0.005)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.5)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    yield
    sender.join(5)


def test_after_the_time_is_over_the_first_signal_still_waits() -> None:
    """What stops a build is not always a signal: the second signal is the second one."""
    with stop_event() as stop:
        stop.set()
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_an_error_of_the_build_lets_uploads_end(
    settings: BuildSettings, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends it, what is committed is on its way to a safe place."""
    commit = fill.commit_shard

    def full(*arguments: Any) -> None:
        if committed(settings.out) == 2:
            raise CometError("the disk is full")
        commit(*arguments)

    monkeypatch.setattr(fill, "commit_shard", full)
    with (
        held_uploads(monkeypatch, until_waited_for(monkeypatch)),
        pytest.raises(CometError, match=r"^the disk is full$"),
    ):
        build_cache(settings, push_to=memory, i_may_share_this=True)
    assert arrived(memory) == committed(settings.out) == 2
