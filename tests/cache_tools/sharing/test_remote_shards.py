"""A cache at a URL, read shard by shard: as from a folder, each file once, and nothing wrong is ever kept."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from helpers import hostile_server as hostile
from helpers.builds import digests
from helpers.hostile_server import Mischief, Server
from helpers.small_caches import make_cache, small_recipe

from cache_tools import Cache, open_cache
from cache_tools.errors import CometError
from cache_tools.settings import LocalCache
from cache_tools.sharing.locations.http import HttpClient
from cache_tools.sharing.remote_shards import open_remote
from cache_tools.sharing.retry import RetryPolicy
from cache_tools.signals import TEXT_ARRAYS
from cache_tools.store.records import with_checksum
from cache_tools.store.staging import LOCK_NAME

PATIENT = RetryPolicy(retries=2, pause=0.02)
CHUNK = "train/attention_gap/c/1/0/0/0"


@pytest.fixture
def whole(tmp_path: Path) -> Cache:
    make_cache(tmp_path / "kin.zarr", small_recipe())
    return open_cache(tmp_path / "kin.zarr")


@pytest.fixture
def server(whole: Cache) -> Iterator[Server]:
    with hostile.serving(whole.root) as running:
        yield running


@pytest.fixture
def local(tmp_path: Path) -> LocalCache:
    return LocalCache(tmp_path / "local", 10**6)


def same(one: Cache, other: Cache) -> None:
    for group in ("train", "validation"):
        for shard in one.extent.indices(group):
            found, expected = one.read_shard(group, shard), other.read_shard(group, shard)
            assert found.keys() == expected.keys()
            for name, array in expected.items():
                np.testing.assert_array_equal(found[name], array)


def chunks(server: Server) -> dict[str, int]:
    return {path: count for path, count in server.requests.items() if "/c/" in path and "vocabulary" not in path}


def test_it_reads_as_from_a_folder_and_every_file_once(server: Server, whole: Cache, local: LocalCache) -> None:
    remote = open_remote(server.url, local, PATIENT)
    assert chunks(server) == {}, "nothing is read that nobody asks for"
    assert (remote.cache_id, remote.recipe, remote.name) == (whole.cache_id, whole.recipe, server.url)
    assert remote.vocabulary.count.tolist() == whole.vocabulary.count.tolist()
    for _ in range(2):
        same(remote, whole)
    same(open_remote(server.url, local, PATIENT), whole)
    assert set(chunks(server).values()) == {1}
    assert digests(remote.root).items() <= digests(whole.root).items()
    assert remote.shard_files is not None
    assert remote.shard_files.described.endswith(f", fetched when needed; up to 1.00MB kept in {local.folder}")


def test_only_the_arrays_that_are_asked_for_move(server: Server, whole: Cache, local: LocalCache) -> None:
    open_remote(server.url, local, PATIENT).read_shard("train", 1, ["input_ids", "length"])
    assert chunks(server) == {"train/input_ids/c/1/0": 1, "train/length/c/1": 1}


def test_in_a_local_cache_too_small_for_all_it_reads_the_same(server: Server, whole: Cache, local: LocalCache) -> None:
    largest = max(path.stat().st_size for path in whole.root.rglob("*/c/**/*") if path.is_file())
    small = LocalCache(local.folder, 2 * largest)
    remote = open_remote(server.url, small, PATIENT)
    for _ in range(2):
        same(remote, whole)
    assert remote.shard_files is not None
    assert "; later epochs fetch evicted shards again" in remote.shard_files.described
    assert sum(path.stat().st_size for path in (local.folder / "files").iterdir()) <= small.size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mischief", "said"),
    [
        (hostile.wrong_bytes, "but the ledger has"),
        (hostile.endless, "more than the .* bytes of the ledger; the file there is damaged"),
        (hostile.truncated, "run the same command again to continue"),
        (hostile.answering(404), "not there, though the ledger lists it; the cache there is damaged"),
        (hostile.answering(503), "the server answered 503; run the same command again to continue"),
        (hostile.redirecting("file:///etc/passwd"), "redirects to file:, which is refused"),
    ],
)
def test_what_is_not_as_the_ledger_says_is_never_kept(
    server: Server, whole: Cache, local: LocalCache, mischief: Mischief, said: str
) -> None:
    remote = open_remote(server.url, local, PATIENT)
    server.mischief[CHUNK] = mischief, None
    with pytest.raises(CometError, match=rf"^{server.url}/{CHUNK}: .*{said}"):
        remote.read_shard("train", 1)
    server.mischief.clear()
    same(remote, whole)


def test_a_server_that_fails_for_a_moment_is_asked_again(server: Server, whole: Cache, local: LocalCache) -> None:
    remote = open_remote(server.url, local, PATIENT)
    server.mischief[CHUNK] = hostile.reset, 2
    same(remote, whole)


def test_a_person_is_told_that_it_is_tried_again(
    server: Server, local: LocalCache, capsys: pytest.CaptureFixture
) -> None:
    server.mischief["zarr.json"] = hostile.answering(503), 1
    open_remote(server.url, local, RetryPolicy(retries=1))
    assert capsys.readouterr().err == f"{server.url}/zarr.json: the server answered 503; trying again in 1 s\n"


def test_what_lies_there_is_another_cache_than_before(server: Server, whole: Cache, local: LocalCache) -> None:
    """Nothing of the one is taken for the other's."""
    same(open_remote(server.url, local, PATIENT), whole)
    make_cache(whole.root.with_name("other.zarr"), small_recipe(seed=1))
    server.files = whole.root.with_name("other.zarr")
    other = open_cache(server.files)
    same(open_remote(server.url, local, PATIENT), other)
    assert sorted(path.name for path in (local.folder / "caches").iterdir()) == sorted([whole.cache_id, other.cache_id])


@pytest.mark.slow
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data + b"x"])
def test_what_is_damaged_here_is_fetched_again(
    server: Server, whole: Cache, local: LocalCache, damage: Callable[[bytes], bytes]
) -> None:
    """Whatever a full disk or a power cut left of metadata, ledger, tokenizer, vocabulary, start and shards."""
    same(open_remote(server.url, local, PATIENT), whole)
    paths = [p for name in ("caches", "files") for p in (local.folder / name).rglob("*") if p.is_file()]
    paths = [path for path in paths if path.name != LOCK_NAME]  # of no content
    before = {path: path.read_bytes() for path in paths}
    assert {"zarr.json", "seal.json", "extent.json", "train-00001.json", "tokenizer.json"} <= {p.name for p in paths}
    for path, data in before.items():
        path.write_bytes(damage(data))
    again = open_remote(server.url, local, PATIENT)
    same(again, whole)
    assert again.cache_id == whole.cache_id
    assert again.vocabulary.count.tolist() == whole.vocabulary.count.tolist()
    assert {path: path.read_bytes() for path in paths} == before


def test_what_is_gone_here_is_fetched_again(server: Server, whole: Cache, local: LocalCache) -> None:
    folder = open_remote(server.url, local, PATIENT).root
    before = digests(folder)
    for name in ("zarr.json", "ledger/seal.json", "ledger/train-00001.json", "vocabulary/id/c/0"):
        (folder / name).unlink()
        same(open_remote(server.url, local, PATIENT), whole)
        assert digests(folder) == before


def test_what_is_damaged_here_while_it_is_open_is_not_blamed_on_the_server(server: Server, local: LocalCache) -> None:
    remote = open_remote(server.url, local, PATIENT)
    (remote.root / "tokenizer/tokenizer.json").write_bytes(b"{")
    with pytest.raises(CometError, match=rf"^{remote.root}/tokenizer/tokenizer.json: 1 bytes that do not match"):
        remote.tokenizer_folder  # noqa: B018


def test_one_that_is_half_built_is_refused(server: Server, whole: Cache, local: LocalCache) -> None:
    (whole.root / "ledger/train-00001.json").unlink()
    with pytest.raises(CometError, match=r": 1 shards are not built yet; to train on the others, pull it first$"):
        open_remote(server.url, local, PATIENT)


def test_one_without_its_text_is_refused(server: Server, whole: Cache, local: LocalCache) -> None:
    without = replace(whole.extent, arrays=tuple(name for name in whole.extent.arrays if name not in TEXT_ARRAYS))
    (whole.root / "ledger/extent.json").write_bytes(with_checksum(without.to_json()))
    with pytest.raises(CometError, match=r": holds no text; pull it, and attach the text with `comet-cache attach`$"):
        open_remote(server.url, local, PATIENT)


def test_a_folder_is_opened_where_it_lies(whole: Cache, local: LocalCache) -> None:
    assert open_remote(f"file://{whole.root}", local, PATIENT).root == whole.root
    assert not local.folder.exists()


def test_closing_ends_the_waiting(server: Server, local: LocalCache) -> None:
    remote = open_remote(server.url, local, RetryPolicy(retries=50, pause=0.02))
    server.mischief[CHUNK] = hostile.answering(503), None
    errors: list[CometError] = []

    def read() -> None:
        try:
            remote.read_shard("train", 1)
        except CometError as error:
            errors.append(error)

    thread = Thread(target=read)
    thread.start()
    while not server.requests[CHUNK]:
        time.sleep(0.01)
    remote.close()
    thread.join(10)
    assert not thread.is_alive() and len(errors) == 1
    with pytest.raises(CometError, match=r": closed; nothing more is read into it$"):
        remote.read_shard("train", 0)


def test_a_read_that_was_only_connecting_at_the_close_ends_too(server: Server) -> None:
    """It had no socket to shut down yet, and would wait for a silent server as long as it may be silent."""
    client = HttpClient(timeout=60)
    server.mischief[CHUNK] = hostile.silent, None
    client.close()
    began = time.monotonic()
    with pytest.raises((OSError, HTTPException)):
        list(client.blocks(f"{server.url}/{CHUNK}", time_limit=60))
    assert time.monotonic() - began < 20
