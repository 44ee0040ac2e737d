"""The bounded folder of files: never more than its size, what was used longest ago goes first, fetched once by all."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_tools.errors import CometError
from cache_tools.settings import LocalCache, parse_bytes
from cache_tools.sharing import disk_cache as disk_cache_module
from cache_tools.sharing.disk_cache import DiskCache
from cache_tools.store.ledger import file_record


def files(count: int, size: int = 100) -> list[bytes]:
    return [bytes([number]) * size for number in range(count)]


def never() -> bytes:
    raise AssertionError("it is there")


def lying_in(folder: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in (folder / "files").iterdir())


@settings(deadline=None)
@given(
    asked=st.lists(st.integers(0, 9), max_size=40),
    sizes=st.lists(st.integers(1, 60), min_size=10, max_size=10),
    limit=st.integers(60, 200),
)
def test_it_returns_every_file_and_stays_within_its_size(
    tmp_path_factory: pytest.TempPathFactory, asked: list[int], sizes: list[int], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("local")
    disk_cache = DiskCache(LocalCache(folder, limit))
    for number in asked:
        data = bytes([number]) * sizes[number]
        assert disk_cache.get(file_record(data), lambda data=data: data) == data
        assert disk_cache.get(file_record(data), never) == data
        assert sum(map(len, lying_in(folder))) <= limit


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    disk_cache = DiskCache(LocalCache(tmp_path, 300))
    one, two, three, four = files(4)
    for data in (one, two, three, one, four):
        disk_cache.get(file_record(data), lambda data=data: data)
        time.sleep(0.01)  # the clock of the disk is a coarse one
    assert lying_in(tmp_path) == [one, three, four]


def test_a_damaged_file_is_fetched_again(tmp_path: Path) -> None:
    local = LocalCache(tmp_path, 300)
    (data,) = files(1)
    path = tmp_path / "files" / file_record(data).sha256
    for damaged in (b"", data[:-1], data[:-1] + b"x"):
        DiskCache(local).get(file_record(data), lambda: data)
        path.write_bytes(damaged)
        assert DiskCache(local).get(file_record(data), lambda: data) == data
        assert path.read_bytes() == data


def test_a_file_larger_than_all_of_it_is_refused(tmp_path: Path) -> None:
    disk_cache = DiskCache(LocalCache(tmp_path, 99))
    with pytest.raises(CometError, match=r"^--local-size: a file has 100 bytes, more than the 99 that may be kept in "):
        disk_cache.get(file_record(files(1)[0]), lambda: files(1)[0])


def test_a_disk_that_refuses(tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    with pytest.raises(CometError, match=r": Not a directory; choose another --local-cache or a smaller --local-size$"):
        DiskCache(LocalCache(tmp_path / "a file", 300))


def test_many_threads_fetch_each_file_once_while_there_is_room(tmp_path: Path) -> None:
    disk_cache, fetched = DiskCache(LocalCache(tmp_path, 10_000)), Counter[bytes]()

    def get(number: int) -> None:
        data = files(10)[number % 10]

        def fetch() -> bytes:
            fetched[data] += 1
            time.sleep(0.01)
            return data

        assert disk_cache.get(file_record(data), fetch) == data

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(get, range(80)))
    assert fetched == Counter(files(10))


def test_many_threads_get_every_file_from_too_small_a_folder(tmp_path: Path) -> None:
    """Files go while others look for them."""

    def get(number: int) -> None:
        data = files(10)[number % 10]
        assert DiskCache(LocalCache(tmp_path, 250)).get(file_record(data), lambda: data) == data

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(get, range(400)))
    assert len(lying_in(tmp_path)) == 2


FETCHING = """
import sys, time
from pathlib import Path
from cache_tools.settings import LocalCache
from cache_tools.sharing.disk_cache import DiskCache
from cache_tools.store.ledger import file_record

def fetch():
    print("fetching", flush=True)
    time.sleep(float(sys.argv[2]))
    return b"a file"

DiskCache(LocalCache(Path(sys.argv[1]), 100)).get(file_record(b"a file"), fetch)
"""


def fetching(folder: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FETCHING, str(folder), str(seconds)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_several_processes_fetch_a_file_once(tmp_path: Path) -> None:
    running = [fetching(tmp_path, 0.5) for _ in range(3)]
    assert sorted(process.communicate(timeout=60)[0] for process in running) == ["", "", "fetching\n"]
    assert lying_in(tmp_path) == [b"a file"]


def test_a_process_killed_while_it_fetches_holds_up_nobody(tmp_path: Path) -> None:
    running = fetching(tmp_path, 600)
    assert running.stdout is not None and running.stdout.readline() == "fetching\n"
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert DiskCache(LocalCache(tmp_path, 100)).get(file_record(b"a file"), lambda: b"a file") == b"a file"


def test_nobody_waits_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_cache_module, "WAIT_SECONDS", 0.2)
    disk_cache, data = DiskCache(LocalCache(tmp_path, 100)), b"a file"
    begun, go_on = threading.Event(), threading.Event()

    def hang() -> bytes:
        begun.set()
        go_on.wait()
        return data

    with ThreadPoolExecutor(1) as pool:
        pool.submit(disk_cache.get, file_record(data), hang)
        begun.wait()
        with pytest.raises(CometError, match=r"locks/\w\w: another process has held this lock for 0 minutes; stop it"):
            disk_cache.get(file_record(data), never)
        disk_cache.closed.set()
        with pytest.raises(CometError, match=r": closed; nothing more is read into it$"):
            disk_cache.get(file_record(data), never)
        go_on.set()


@pytest.mark.parametrize(
    ("text", "size"), [("20GB", 20 * 10**9), ("1.5 MB", 1_500_000), ("300k", 300_000), ("7", 7), ("2T", 2 * 10**12)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "20 apples", "0", "0.1", "1e9", "20GiB"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(CometError, match=r": expected a size such as 20GB or 500MB$"):
        parse_bytes(text)
