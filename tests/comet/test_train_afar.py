"""Training from a URL: the student of the same cache on the disk, whatever befalls the way there."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from helpers import hostile_server as hostile
from helpers.hostile_server import Server
from helpers.trainings import checkpoints_of, start_together, start_training, wait_for_checkpoint
from safetensors.torch import load_file

from cache_tools import Cache
from comet.cli.train import train

KIND = ("--batch-size", "16", "--init", "cache", "--vocabulary", "full")
STEPS = ("--steps", "12", *KIND)


@pytest.fixture
def server(cache: Cache) -> Iterator[Server]:
    with hostile.serving(cache.root.parent) as running:
        yield running


def trained(source: Cache | str, output: Path, *options: str) -> str:
    """What a training that succeeds says."""
    ended = start_training(source, output, *STEPS, *options).wait()
    assert ended.code == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def here(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student of the cache on the disk."""
    output = tmp_path_factory.mktemp("here") / "student"
    trained(cache, output)
    return output


def chunks(server: Server) -> dict[str, int]:
    """How often each file of a shard was asked for."""
    return {path: count for path, count in server.requests.items() if "/train/" in path and "/c/" in path}


def files_below(folder: Path) -> list[str]:
    """All of them, also those that nobody has asked for yet, as a server of the folder names them."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def same_students(one: Path, other: Path) -> bool:
    return (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_it_trains_the_student_of_the_same_cache_on_the_disk(server: Server, here: Path, tmp_path: Path) -> None:
    local = ("--local-cache", str(tmp_path / "local"), "--local-size", "5MB")
    said = trained(f"{server.url}/kin.zarr", tmp_path / "afar", *local)
    assert f"of shards, fetched when needed; up to 5.00MB kept in {tmp_path}/local\n" in said
    assert same_students(here, tmp_path / "afar")
    assert set(chunks(server).values()) == {1}, "and every file came once"
    server.requests.clear()
    trained(f"{server.url}/kin.zarr", tmp_path / "again", *local)
    assert same_students(here, tmp_path / "again")
    assert server.requests and not chunks(server), "the second time only metadata is read"


@pytest.mark.slow
def test_several_processes_fetch_every_file_once(server: Server, here: Path, tmp_path: Path) -> None:
    local = ("--local-cache", str(tmp_path / "local"))
    for running in start_together(f"{server.url}/kin.zarr", tmp_path / "afar", 2, *STEPS, *local):
        ended = running.wait()
        assert ended.code == 0, ended
    one, other = (load_file(output / "model.safetensors") for output in (here, tmp_path / "afar"))
    assert all(torch.allclose(weight, other[name], atol=1e-3) for name, weight in one.items())
    assert set(chunks(server).values()) == {1}


@pytest.mark.slow
def test_a_training_that_loses_its_server_ends_and_resumes_later(cache: Cache, here: Path, tmp_path: Path) -> None:
    """With a local cache of one shard nothing is at hand of what comes next."""
    options = (*STEPS, "--local-cache", str(tmp_path / "local"), "--local-size", "60kB")
    output = tmp_path / "afar"
    with hostile.serving(cache.root.parent) as server:
        url = f"{server.url}/kin.zarr"
        running = start_training(url, output, *options)
        wait_for_checkpoint(running, output, 2)
        for file in files_below(cache.root.parent):
            server.mischief[file] = hostile.answering(404), None
        ended = running.wait()
        assert ended.code == 1
        assert ended.stderr.splitlines()[-1].startswith(f"error: {url}/train/")
        assert ended.stderr.splitlines()[-1].endswith("the ledger lists it; the cache there is damaged")
        assert checkpoints_of(output) and not output.exists()
        server.mischief.clear()
        ended = start_training(url, output, *options, "--resume").wait()
        assert ended.code == 0, ended.stderr
    assert same_students(here, output)


@pytest.mark.slow
def test_a_second_signal_does_not_wait_for_a_silent_server(cache: Cache, tmp_path: Path) -> None:
    output = tmp_path / "afar"
    with hostile.serving(cache.root.parent) as server:
        options = (
            "--local-cache",
            str(tmp_path / "local"),
            "--local-size",
            "60kB",
            "--steps",
            "200",
        )  # so that it never ends by itself
        running = start_training(f"{server.url}/kin.zarr", output, *KIND, *options)
        wait_for_checkpoint(running, output, 2)
        before = server.requests.total()
        for file in files_below(cache.root.parent):
            server.mischief[file] = hostile.silent, None
        while server.requests.total() == before:
            time.sleep(0.01)
        time.sleep(1.0)  # by now the step in work is done, and the trainer waits
        for _ in range(2):
            os.kill(running.pid, signal.SIGTERM)
            time.sleep(0.5)
        before = time.monotonic()
        ended = running.wait()
        assert time.monotonic() - before < 10
    assert ended.code == 1
    assert ended.stderr.splitlines()[-1].startswith("stopped at once; --resume continues from the last checkpoint in ")
    assert checkpoints_of(output)


@pytest.mark.slow
@pytest.mark.parametrize("output", ["student", None])
def test_what_the_url_holds_of_secrets_is_written_nowhere(
    cache: Cache, tmp_path: Path, output: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor named after it, where the cache lies at the root of its server and gives its name to nothing."""
    monkeypatch.chdir(tmp_path)
    with hostile.serving(cache.root) as server:
        url = server.url.replace("http://", "http://user:sesame@") + "/?X-Amz-Signature=sesame"
        call = ["--cache", url, "--local-cache", "local", *(["--output", output] if output else [])]
        done = CliRunner().invoke(train, [*call, "--student", "nano", "--steps", "2"])
        assert done.exit_code == 0, done.output
        assert "sesame" not in done.output
        for path in tmp_path.rglob("*"):
            assert "sesame" not in path.name
            assert path.is_dir() or b"sesame" not in path.read_bytes(), path
        name = output or "127.0.0.1-student"
        assert {path.name for path in tmp_path.iterdir()} == {"local", name, f"{name}.html", f"{name}.toml"}
        assert f'"{server.url}"' in (tmp_path / f"{name}.toml").read_text()
        again = ["--config", f"{name}.toml", "--cache", url, "--local-cache", "local", "--output", "again"]
        assert CliRunner().invoke(train, again).exit_code == 0, "credentials are given again"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--local-size", "much"], "error: --local-size much: expected a size such as 20GB or 500MB\n"),
        (["--local-size", "1kB"], "error: --local-size: a file has "),
        (["--cache", "gopher://lab/kin.zarr"], "error: gopher://lab/kin.zarr: fsspec does not support gopher://\n"),
    ],
)
def test_what_cannot_be_is_refused(server: Server, tmp_path: Path, options: list[str], said: str) -> None:
    call = ["--cache", f"{server.url}/kin.zarr", "--output", str(tmp_path / "student"), "--student", "nano"]
    done = CliRunner().invoke(train, [*call, "--local-cache", str(tmp_path / "local"), *options])
    assert done.exit_code == 2
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1
    assert not (tmp_path / "student").exists()
