"""`build --push-to URL` against real servers: what a machine that died has built is there, and another one goes on."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from helpers.builds import Ended, Running, build, build_arguments
from helpers.settings import SMALL
from helpers.sharing_servers import SERVERS, SLOW_SERVERS, Server

from cache_tools import Cache, open_cache
from cache_tools.cli.main import main
from cache_tools.sharing.listing import read_listing
from cache_tools.sharing.locations.location import locate
from cache_tools.sharing.retry import RetryPolicy
from cache_tools.store.ledger import EXTENT
from cache_tools.verify.verify import verify

OPTIONS = SMALL | {"max_tokens": 1000, "views": 2, "rows_per_shard": 4}
POLICY = RetryPolicy(retries=0)
ONE_SERVER = pytest.mark.parametrize("server", ["s3"], indirect=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, sample_teacher: Path, sample_text: Path) -> Cache:
    """What one uninterrupted build gives, pushed nowhere."""
    out = tmp_path_factory.mktemp("whole") / "kin.zarr"
    assert build(out, sample_teacher, sample_text, out.parent / "log", **OPTIONS).code == 0
    return open_cache(out)


@pytest.fixture(scope="module", params=["folder", *SLOW_SERVERS])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    start = SERVERS[request.param]
    with start(tmp_path_factory.mktemp(request.param)) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


class Machine:
    """One that has text and teacher, and a disk of its own that may be lost."""

    def __init__(self, folder: Path, server: Server, teacher: Path, text: Path) -> None:
        self.out, self.folder, self.server = folder / "kin.zarr", folder, server
        self.inputs = teacher, text

    def start(self, url: str, *more: str, **changes: object) -> Running:
        self.folder.mkdir(exist_ok=True)
        arguments = build_arguments(self.out, *self.inputs, push_to=url, **OPTIONS | changes)
        arguments += ["--i-may-share-this", *more]
        return Running(arguments, self.folder / "log", self.server.environment)

    def build(self, url: str, *more: str, **changes: object) -> Ended:
        return self.start(url, *more, **changes).wait()

    def built(self) -> int:
        return len(list((self.out / "ledger").glob("*-*.json")))


@pytest.fixture
def machines(tmp_path: Path, server: Server, sample_teacher: Path, sample_text: Path) -> list[Machine]:
    return [Machine(tmp_path / str(number), server, sample_teacher, sample_text) for number in range(2)]


@pytest.fixture
def url(server: Server, request: pytest.FixtureRequest) -> str:
    """A location on the server that no other test uses."""
    return f"{server.push}/{re.sub(r'[^a-z_]', '-', request.node.name)}"


def pull(url: str, folder: Path, *options: object) -> Result:
    return CliRunner().invoke(main, ["pull", url, str(folder), *map(str, options)])


def shards_at(url: str) -> int:
    return len(read_listing(locate(url, POLICY), POLICY).records)


def test_a_machine_that_dies_loses_nothing_and_another_goes_on(
    machines: list[Machine], url: str, whole: Cache, tmp_path: Path
) -> None:
    """What has arrived can be pulled at every moment, and nobody builds it again."""
    dying, fresh = machines
    total = sum(map(whole.recipe.shards, ("train", "validation")))
    location = locate(url, POLICY)
    running = dying.start(url)
    for path in (EXTENT, "ledger/train-00001.json"):
        assert running.wait_until(lambda path=path: location.size_of(path) is not None)
        os.kill(running.pid, signal.SIGSTOP)
        done = pull(url, tmp_path / "pulled")
        assert done.exit_code == 1, done.output
        assert "shards are not built yet; all others are copied" in done.stderr
        assert verify(tmp_path / "pulled").damage == []
        os.kill(running.pid, signal.SIGCONT)
    assert running.send(signal.SIGKILL).code == -signal.SIGKILL
    there = shards_at(url)
    assert 2 <= there < total

    ended = fresh.build(url)
    assert (ended.code, ended.stderr) == (0, ""), ended
    said = ended.stdout.splitlines()
    assert f"{location.name}: the cache was begun there; resuming it in {fresh.out}" in said
    assert f"{location.name}: holds {there} of the {total} shards to build; fetching them" in said
    assert f"{location.name}: complete, cache id {whole.cache_id}" in said
    assert open_cache(fresh.out).cache_id == whole.cache_id
    assert pull(url, tmp_path / "pulled", "--id", whole.cache_id).exit_code == 0
    assert verify(tmp_path / "pulled", deep=True).damage == []


def test_two_workers_on_two_machines_push_to_one_url(
    machines: list[Machine], url: str, whole: Cache, tmp_path: Path
) -> None:
    """The second has no disk in common with the first, and waits for it to begin the cache at the URL."""
    second = machines[1].start(url, worker="2/2")
    assert second.wait_until(lambda: "waiting for worker 1" in second.read("stdout"))
    first = machines[0].build(url, worker="1/2")
    ended = second.wait()
    assert (first.code, first.stderr, ended.code, ended.stderr) == (0, "", 0, ""), (first, ended)
    total = sum(map(whole.recipe.shards, ("train", "validation")))
    assert [machine.built() for machine in machines] == [(total + 1) // 2, total // 2]
    assert pull(url, tmp_path / "pulled", "--id", whole.cache_id).exit_code == 0
    assert verify(tmp_path / "pulled", deep=True).damage == []


def test_two_pushes_at_once_leave_one_sound_cache(server: Server, url: str, whole: Cache, tmp_path: Path) -> None:
    arguments = ["push", str(whole.root), url, "--i-may-share-this"]
    both = [Running(arguments, tmp_path / f"log {number}", server.environment) for number in range(2)]
    for running in both:
        ended = running.wait()
        assert ended.code == 0
        # a server may refuse one of two files of one name at once, as this s3 does
        assert all(line.endswith("; trying again in 1 s") for line in ended.stderr.splitlines()), ended.stderr
        assert whole.cache_id in ended.stdout
    assert pull(url, tmp_path / "pulled", "--id", whole.cache_id).exit_code == 0
    assert verify(tmp_path / "pulled", deep=True).damage == []


@pytest.mark.slow
@ONE_SERVER
def test_a_signal_waits_for_what_is_on_its_way(machines: list[Machine], url: str) -> None:
    machine = machines[0]
    running = machine.start(url)
    assert running.wait_until(lambda: machine.built() >= 2)
    ended = running.send(signal.SIGTERM)
    assert ended.code == 1
    assert f"{machine.out}: stopped with " in ended.stderr
    assert shards_at(url) == machine.built()
    name, left = locate(url, POLICY).name, re.search(r"stopped with (\d+) shards", ended.stderr)
    assert left is not None and f"{name}: {left[1]} shards are not there yet" in ended.stdout.splitlines()


@pytest.mark.slow
@ONE_SERVER
def test_another_cache_is_refused_before_anything_is_built(machines: list[Machine], url: str) -> None:
    assert machines[0].build(url).code == 0
    ended = machines[1].build(url, top_k=9, seed=3)
    assert ended.code == 2
    assert re.fullmatch(
        r"error: \S+: exists and is another cache than the one asked for \(--seed: asked 3, the cache has 0; --top-k: "
        r"asked 9, the cache has 8\); choose another --push-to, or give the options it was begun with to continue "
        r"it\n",
        ended.stderr,
    )
    assert not machines[1].out.exists()


@pytest.mark.slow
@ONE_SERVER
def test_what_is_built_here_and_what_is_there_come_together(machines: list[Machine], url: str, whole: Cache) -> None:
    """A machine that was switched off comes back when another one has gone on."""
    back, other = machines
    running = back.start(url)
    assert running.wait_until(lambda: back.built() >= 2)
    assert running.send(signal.SIGTERM).code == 1
    assert other.build(url).code == 0
    ended = back.build(url)
    assert (ended.code, ended.stderr) == (0, "")
    assert "tokens in" not in ended.stdout, "the teacher had nothing to do"
    assert open_cache(back.out).cache_id == whole.cache_id


@ONE_SERVER
def test_a_bucket_that_is_not_there_is_one_line(machines: list[Machine]) -> None:
    ended = machines[0].build("s3://nowhere/kin")
    assert ended.code == 1
    assert ended.stderr == (
        "error: s3://nowhere/kin/zarr.json: cannot be written, there is no such bucket or disk; check the URL\n"
    )
    assert machines[0].built() == 0
