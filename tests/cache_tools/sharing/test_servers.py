"""push and pull against real servers: what arrives is what was sent, whole or in part, and nothing moves twice."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.builds import digests
from helpers.commands import run
from helpers.settings import build_settings
from helpers.sharing_servers import SERVERS, SLOW_SERVERS, Server

from cache_tools import Cache, build_cache, open_cache
from cache_tools.sharing.retry import RetryPolicy
from cache_tools.verify.verify import verify


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, sample_teacher: Path, sample_text: Path) -> Cache:
    """A complete cache of a real teacher that nobody changes."""
    out = tmp_path_factory.mktemp("whole") / "kin.zarr"
    return build_cache(build_settings(out, sample_teacher, sample_text, rows_per_shard=12))


@pytest.fixture(scope="module", params=["folder", "nginx", *SLOW_SERVERS])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    start = SERVERS[request.param]
    with start(tmp_path_factory.mktemp(request.param)) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture(scope="module")
def there(server: Server, whole: Cache) -> str:
    """The whole cache on the server, by the URL that it is pulled from."""
    done = run("push", whole.root, f"{server.push}/kin.zarr", "--i-may-share-this")
    assert done.exit_code == 0, done.output
    assert f"complete\n  cache id           {whole.cache_id}\n" in done.stdout
    return f"{server.pull}/kin.zarr"


def without(folder: Path, *names: str) -> dict[str, str]:
    return {path: digest for path, digest in digests(folder).items() if path not in names}


def test_what_arrives_is_what_was_sent(there: str, whole: Cache, tmp_path: Path) -> None:
    done = run("pull", there, tmp_path / "kin.zarr", "--id", whole.cache_id)
    assert done.exit_code == 0, done.output
    assert digests(tmp_path / "kin.zarr") == digests(whole.root)
    assert open_cache(tmp_path / "kin.zarr").cache_id == whole.cache_id
    report = verify(tmp_path / "kin.zarr", deep=True)
    assert report.damage == report.notes == []


def test_the_second_time_nothing_moves(there: str, server: Server, whole: Cache, tmp_path: Path) -> None:
    assert run("pull", there, tmp_path / "kin.zarr").exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "kin.zarr").rglob("*") if path.is_file()}
    assert run("pull", there, tmp_path / "kin.zarr").stdout.startswith("nothing to copy\n")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "kin.zarr").rglob("*") if path.is_file()} == before
    assert "nothing to copy\n" in run("push", whole.root, f"{server.push}/kin.zarr", "--i-may-share-this").stdout


def test_a_part_and_then_the_rest(there: str, whole: Cache, tmp_path: Path) -> None:
    """Each call moves what the ones before have not: signals, then shards."""
    sizes = []
    for part in (["--max-tokens", 12 * 48, "--signals", "logits"], ["--max-tokens", 12 * 48], []):
        done = run("pull", there, tmp_path / "kin.zarr", *part)
        assert done.exit_code == 0, done.output
        sizes.append(sum(path.stat().st_size for path in (tmp_path / "kin.zarr").rglob("*/c/**/*") if path.is_file()))
        assert verify(tmp_path / "kin.zarr", deep=True).damage == []
    assert sizes == sorted(set(sizes))
    assert open_cache(tmp_path / "kin.zarr").cache_id == whole.cache_id


def test_the_wrong_cache_is_not_pulled(there: str, tmp_path: Path) -> None:
    done = run("pull", there, tmp_path / "kin.zarr", "--id", "0" * 64)
    assert done.exit_code == 1
    assert re.fullmatch(
        rf"error: \S+/kin\.zarr: expected the cache id {'0' * 64}, found \w{{64}}; nothing was copied\n", done.stderr
    )
    assert not (tmp_path / "kin.zarr").exists()


def test_nothing_there(server: Server, tmp_path: Path) -> None:
    done = run("pull", f"{server.pull}/nothing", tmp_path / "kin.zarr")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.endswith("/nothing: no cache there, or an incomplete one: no zarr.json\n")
    assert not (tmp_path / "kin.zarr").exists()


def test_a_push_that_was_cut_goes_on(server: Server, whole: Cache, tmp_path: Path) -> None:
    """A builder that pushes whenever more is built: the records of the first half are there already."""
    half = tmp_path / "half"
    shutil.copytree(whole.root, half)
    for shard in range(1, whole.recipe.shards("train")):
        (half / f"ledger/train-{shard:05d}.json").unlink()
    done = run("push", half, f"{server.push}/halves", "--i-may-share-this")
    missing = whole.recipe.shards("train") - 1
    assert done.exit_code == 1
    assert done.stderr == (
        f"error: {half}: {missing} shards are not built yet; all others are copied. Run the same command again when "
        "more are built\n"
    )
    assert run("pull", f"{server.pull}/halves", tmp_path / "pulled").exit_code == 1
    assert len(open_cache(tmp_path / "pulled").missing("train")) == missing
    assert run("push", whole.root, f"{server.push}/halves", "--i-may-share-this").exit_code == 0
    assert run("pull", f"{server.pull}/halves", tmp_path / "pulled", "--id", whole.cache_id).exit_code == 0
    assert digests(tmp_path / "pulled") == digests(whole.root)


def test_an_unknown_host_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SERVERS["sshd"](tmp_path) as running:
        monkeypatch.setenv("HOME", running.environment["HOME"])
        url = f"{running.pull}/kin.zarr"
        assert run("pull", url, tmp_path / "kin.zarr").stderr.endswith("or an incomplete one: no zarr.json\n")
        (tmp_path / "home/.ssh/known_hosts").write_text("")
        done = run("pull", url, tmp_path / "kin.zarr")
        assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
        assert "HostKeyNotVerifiable" in done.stderr and "check the URL" in done.stderr


def test_nobody_answers_is_one_line_without_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SERVERS["s3"](tmp_path) as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        monkeypatch.setattr("cache_tools.sharing.retry.RetryPolicy", lambda: RetryPolicy(timeout=2, retries=0))
        done = run("pull", f"{running.pull}/kin.zarr", tmp_path / "kin.zarr")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "run the same command again to continue" in done.stderr
    assert not any(secret in done.output for secret in running.environment.values() if "key" in secret)
