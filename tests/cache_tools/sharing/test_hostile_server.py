"""What a broken or hostile server does to a pull: it ends in one line in seconds, and only sound files have names."""

import gzip
import shutil
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from helpers import hostile_server as hostile
from helpers.builds import digests
from helpers.hostile_server import Mischief, Server
from helpers.small_caches import make_cache, small_recipe

from cache_tools import open_cache
from cache_tools.cli.main import main
from cache_tools.sharing.retry import RetryPolicy

CHUNK = "train/attention_gap/c/1/0/0/0"
RECORD = "ledger/train-00001.json"
SEAL = "ledger/seal.json"
VOCABULARY = "vocabulary/embedding/c/0/0"
PATIENT = RetryPolicy(retries=2, pause=0.02)
HASTY = RetryPolicy(timeout=1.5, retries=0)
BOUND = 20.0  # seconds; what a pull may take here, on a busy machine


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "kin.zarr"
    make_cache(root, small_recipe())
    return root


@pytest.fixture
def server(whole: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("cache_tools.sharing.retry.RetryPolicy", lambda: PATIENT)
    with hostile.serving(whole) as running:
        running.mischief["login"] = hostile.page, None
        yield running


def pull(url: str, folder: Path, *options: str) -> Result:
    before = time.monotonic()
    done = CliRunner().invoke(main, ["pull", url, str(folder / "kin.zarr"), *options])
    assert time.monotonic() - before < BOUND
    return done


def refused(done: Result, folder: Path, whole: Path) -> str:
    """The one line of a pull that failed, after which every file in the folder is one of the cache's."""
    assert done.exit_code in (1, 2), done.output
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert [path.name for path in folder.iterdir()] in ([], ["kin.zarr"])
    if (folder / "kin.zarr").exists():
        assert digests(folder / "kin.zarr").items() <= digests(whole).items()
    return done.stderr.removeprefix("error: ").rstrip("\n")


def complete(done: Result, folder: Path, whole: Path) -> None:
    assert done.exit_code == 0, done.output
    assert digests(folder / "kin.zarr") == digests(whole)
    assert open_cache(folder / "kin.zarr").cache_id == open_cache(whole).cache_id


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
PAGE = b"<html><body>Please log in</body></html>"
ASKED = "sends it in an encoding that was not requested "
LOST = "run the same command again to continue"
BROKEN: dict[str, tuple[str, Mischief, str]] = {
    "an endless chunk": (CHUNK, hostile.endless, "more than the "),
    "an endless record": (RECORD, hostile.endless, "more than 4194304 bytes, the limit"),
    "endless metadata": ("zarr.json", hostile.endless, "more than 1048576 bytes, the limit"),
    "a huge record": (RECORD, hostile.huge, "more than 4194304 bytes, the limit"),
    "a huge seal": (SEAL, hostile.huge, "more than 4194304 bytes, the limit"),
    "a truncated chunk": (CHUNK, hostile.truncated, LOST),
    "a truncated record": (RECORD, hostile.truncated, LOST),
    "a shorter chunk": (CHUNK, hostile.shorter_than_the_ledger, "bytes of the ledger; the file there is too short"),
    "an empty chunk": (CHUNK, hostile.sending(b""), ": 0 of the "),
    "a pointer instead of a chunk": (CHUNK, hostile.sending(POINTER), "a pointer of Git LFS came instead of the file"),
    "a page instead of a chunk": (CHUNK, hostile.page, "a page came instead of the file"),
    "a long page instead of a chunk": (CHUNK, hostile.sending(PAGE * 9999), "a page came instead of the file"),
    "an error instead of a chunk": (CHUNK, hostile.sending(b'{"error": 404}'), "an answer in JSON came instead of"),
    "gzip that nobody declares": (CHUNK, hostile.sending(gzip.compress(b"x" * 99)), "gzip data came instead of"),
    "a page instead of the cache": ("zarr.json", hostile.page, "a page came instead of the file"),
    "a page instead of the seal": (SEAL, hostile.page, "a page came instead of the file"),
    "a page after a redirect": ("zarr.json", hostile.redirecting("/login"), "a page came instead of the file"),
    "an error instead of the cache": ("zarr.json", hostile.sending(b'{"code": 1}'), "an answer in JSON came instead"),
    "a text instead of the cache": ("zarr.json", hostile.sending(b"404 not found"), "a text came instead of the file"),
    "an encoding without a decoder": (CHUNK, hostile.encoded("br", bytes), ASKED + "(br)"),
    "an encoding that is none": (SEAL, hostile.encoded("gzip", bytes), ASKED + "(gzip)"),
    "an encoding cut short": (CHUNK, hostile.encoded("gzip", lambda data: gzip.compress(data)[:-9]), ASKED + "(gzip)"),
    "an encoding of the transfer": (CHUNK, hostile.transferred("gzip, chunked"), ASKED + "(gzip, chunked)"),
    "a login of the network": (CHUNK, hostile.answering(511), "this network asks for a login first"),
    "no chunk, as s3 says it": (CHUNK, hostile.answering(403), "answered 403, as some do for what is not there; check"),
    "a part that nobody asked for": (CHUNK, hostile.answering(206), "the server answered 206; check the URL"),
    "a longer chunk": (CHUNK, hostile.longer_than_the_ledger, "bytes of the ledger; the file there is damaged"),
    "wrong bytes in a chunk": (CHUNK, hostile.wrong_bytes, "…, but the ledger has "),
    "wrong bytes in the vocabulary": (VOCABULARY, hostile.wrong_bytes, "…, but the ledger has "),
    "wrong bytes in a record": (RECORD, hostile.wrong_bytes, "the cache is damaged"),
    "wrong bytes in the seal": (SEAL, hostile.wrong_bytes, "the cache is damaged"),
    "a chunk that is gone": (CHUNK, hostile.answering(404), "not there, though the ledger lists it"),
    "no permission": (CHUNK, hostile.answering(401), "the server answered 401; check the URL and your credentials"),
    "an error that stays": (CHUNK, hostile.answering(503), f"the server answered 503; {LOST}"),
    "a reset that stays": (CHUNK, hostile.reset, LOST),
    "a redirect to a file": (CHUNK, hostile.redirecting("file:///etc/passwd"), "redirects to file:, which is refused"),
    "a redirect to ftp": ("zarr.json", hostile.redirecting("ftp://host/x"), "redirects to ftp:, which is refused"),
    "a redirect in a circle": (CHUNK, hostile.redirecting(f"/{CHUNK}"), "redirects more than 5 times"),
}
SLOW: dict[str, tuple[str, Mischief, str]] = {
    "a slow chunk": (CHUNK, hostile.slow_body, LOST),
    "slow headers": (CHUNK, hostile.slow_headers, LOST),
    "a slow record": (RECORD, hostile.slow_body, LOST),
    "silence": (CHUNK, hostile.silent, LOST),
    "silence at first": ("zarr.json", hostile.silent, LOST),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BROKEN | SLOW)
def test_one_line_and_only_sound_files_have_names(
    server: Server, whole: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And once the server is as it should be, the same command goes on to the end."""
    path, mischief, said = (BROKEN | SLOW)[case]
    server.mischief[path] = (mischief, None)
    monkeypatch.setattr("cache_tools.sharing.retry.RetryPolicy", lambda: HASTY if case in SLOW else PATIENT)
    message = refused(pull(server.url, tmp_path), tmp_path, whole)
    assert message.startswith(server.url) and said in message
    assert path in message
    if "instead of" in said or said.startswith(ASKED):
        assert "damaged" not in message
    server.mischief.clear()
    monkeypatch.setattr("cache_tools.sharing.retry.RetryPolicy", lambda: PATIENT)
    complete(pull(server.url, tmp_path), tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mischief",
    [
        hostile.encoded("gzip", gzip.compress),
        hostile.encoded("x-gzip", gzip.compress),
        hostile.encoded("deflate", zlib.compress),
        hostile.encoded("identity", bytes),
        hostile.chunked,
        hostile.unframed,
    ],
)
def test_what_can_be_undone_is(
    server: Server, whole: Path, tmp_path: Path, mischief: Mischief, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostile.Handler, "protocol_version", "HTTP/1.1")
    server.mischief = dict.fromkeys(digests(whole), (mischief, None))
    complete(pull(server.url, tmp_path), tmp_path, whole)


@pytest.mark.parametrize("mischief", [hostile.page, hostile.answering(403), hostile.answering(410)])
def test_what_servers_say_of_a_shard_that_is_not_built(
    server: Server, whole: Path, tmp_path: Path, mischief: Mischief
) -> None:
    """All others are copied, and the line before the last one says what came."""
    server.mischief[RECORD] = mischief, None
    done = pull(server.url, tmp_path)
    assert done.exit_code == 1
    *before, last = done.stderr.splitlines()
    assert last.startswith(f"error: {server.url}: 1 shards are not built yet; all others are copied. ")
    assert all(line.startswith(f"{server.url}/{RECORD}: ") for line in before)
    assert all(line.endswith("; the shard is taken for one that is not built yet") for line in before)
    assert "damaged" not in done.stderr
    server.mischief.clear()
    complete(pull(server.url, tmp_path), tmp_path, whole)


def test_a_connection_that_breaks_without_a_word_of_the_length_is_tried_again(
    server: Server, whole: Path, tmp_path: Path
) -> None:
    server.mischief[CHUNK] = hostile.cut_without_a_length, PATIENT.retries
    complete(pull(server.url, tmp_path), tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("mischief", [hostile.answering(503), hostile.answering(429), hostile.reset, hostile.truncated])
@pytest.mark.parametrize("path", [CHUNK, RECORD, "zarr.json"])
def test_what_passes_is_waited_for(server: Server, whole: Path, tmp_path: Path, path: str, mischief: Mischief) -> None:
    server.mischief[path] = (mischief, PATIENT.retries)
    complete(pull(server.url, tmp_path), tmp_path, whole)
    assert server.requests[path] >= PATIENT.retries + 1


def test_what_stays_is_not_asked_for_again(server: Server, whole: Path, tmp_path: Path) -> None:
    for mischief in (hostile.wrong_bytes, hostile.shorter_than_the_ledger, hostile.page, hostile.answering(206)):
        server.mischief[CHUNK] = mischief, None
        server.requests.clear()
        refused(pull(server.url, tmp_path), tmp_path, whole)
        assert server.requests[CHUNK] == 1


def test_a_redirect_to_the_same_kind_of_server_is_followed(server: Server, whole: Path, tmp_path: Path) -> None:
    for path in digests(whole):
        server.mischief[f"moved/{path}"] = (hostile.redirecting(f"{server.url}/{path}"), None)
    complete(pull(f"{server.url}/moved", tmp_path), tmp_path, whole)


def test_files_are_asked_for_once_and_whole(server: Server, whole: Path, tmp_path: Path) -> None:
    """Any static server will do: no HEAD, no ranges, no listing."""
    complete(pull(server.url, tmp_path), tmp_path, whole)
    assert set(server.requests) - set(digests(whole)) == set()
    assert {count for path, count in server.requests.items() if "/c/" in path} == {1}
    assert not any("Range" in headers for headers in server.headers_seen)
    server.requests.clear()
    complete(pull(server.url, tmp_path), tmp_path, whole)
    assert not any("/c/" in path for path in server.requests)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mischief", [hostile.answering(401), hostile.wrong_bytes, hostile.reset, hostile.answering(503)]
)
def test_credentials_are_used_but_never_shown(server: Server, whole: Path, tmp_path: Path, mischief: Mischief) -> None:
    url = server.url.replace("http://", "http://ann:pass%21word@") + "?token=s3cret&b=other"
    server.mischief[CHUNK] = (mischief, None)
    done = pull(url, tmp_path)
    refused(done, tmp_path, whole)
    assert not [secret for secret in ("ann", "pass", "s3cret", "other", "token") if secret in done.output]
    assert {headers["Authorization"] for headers in server.headers_seen} == {"Basic YW5uOnBhc3Mhd29yZA=="}
    assert {headers["path"].partition("?")[2] for headers in server.headers_seen} == {"token=s3cret&b=other"}
    server.mischief.clear()
    complete(pull(url, tmp_path), tmp_path, whole)


def test_credentials_follow_a_redirect_on_the_same_server_alone(server: Server, whole: Path, tmp_path: Path) -> None:
    there = f"localhost:{server.server_port}"
    server.mischief["zarr.json"] = hostile.redirecting(f"{server.url}/moved/zarr.json"), None
    server.mischief[CHUNK] = hostile.redirecting(f"http://bob:other@{there}/moved/{CHUNK}"), None
    for path in ("zarr.json", CHUNK):
        server.mischief[f"moved/{path}"] = hostile.sending((whole / path).read_bytes()), None
    complete(pull(server.url.replace("://", "://ann:secret@"), tmp_path), tmp_path, whole)
    given = {(headers["Host"], headers.get("Authorization")) for headers in server.headers_seen}
    assert given == {(server.url.removeprefix("http://"), "Basic YW5uOnNlY3JldA=="), (there, None)}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["HTTP://HOST", "http://HOST/", "http://HOST//", "http://HOST/?", "http://HOST#x"])
def test_forms_of_a_url(server: Server, whole: Path, tmp_path: Path, form: str) -> None:
    complete(pull(form.replace("HOST", server.url.removeprefix("http://")), tmp_path), tmp_path, whole)


def test_an_address_in_brackets(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "address_family", socket.AF_INET6)
    monkeypatch.setattr(Server, "address", "::1")
    try:
        with hostile.serving(whole) as server:
            complete(pull(f"http://[::1]:{server.server_port}", tmp_path), tmp_path, whole)
    except OSError:
        pytest.skip("this machine has no IPv6")


def test_a_query_is_sent_as_it_is(server: Server, whole: Path, tmp_path: Path) -> None:
    """Also one that ends with a slash, as signatures may, or holds what no request line can."""
    complete(pull(f"{server.url}/?sig=a/+%2F=&b=é ü/", tmp_path), tmp_path, whole)
    asked = {headers["path"].partition("?")[2] for headers in server.headers_seen}
    assert asked == {"sig=a/+%2F=&b=%C3%A9%20%C3%BC/"}


def test_another_cache_at_the_destination_stays(server: Server, tmp_path: Path) -> None:
    make_cache(tmp_path / "kin.zarr", small_recipe(seed=7, top_k=3))
    before = digests(tmp_path / "kin.zarr")
    done = pull(server.url, tmp_path)
    assert done.exit_code == 2
    assert done.stderr.endswith(
        "kin.zarr: holds another cache; choose another location (seed: 7 against 0; top_k: 3 against 4)\n"
    )
    assert digests(tmp_path / "kin.zarr") == before


def test_foreign_files_at_the_destination_stay(server: Server, tmp_path: Path) -> None:
    (tmp_path / "kin.zarr").mkdir()
    (tmp_path / "kin.zarr" / "thesis.tex").write_text("mine")
    done = pull(server.url, tmp_path)
    assert done.stderr == f"error: {tmp_path / 'kin.zarr'}: holds files, but no cache; choose an empty location\n"
    assert digests(tmp_path / "kin.zarr").keys() == {"thesis.tex"}


def test_passwords_of_netrc_go_to_their_host_alone(
    server: Server, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login ann password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    server.mischief[f"moved/{CHUNK}"] = (hostile.redirecting(f"http://localhost:{server.server_port}/{CHUNK}"), None)
    shutil.copytree(whole, server.files / "moved", ignore=shutil.ignore_patterns("moved"))
    try:
        complete(pull(f"{server.url}/moved", tmp_path / "there"), tmp_path / "there", whole / "moved")
    finally:
        shutil.rmtree(server.files / "moved")
    given = {headers["Host"]: headers.get("Authorization") for headers in server.headers_seen}
    assert given == {
        f"127.0.0.1:{server.server_port}": "Basic YW5uOnNlY3JldA==",
        f"localhost:{server.server_port}": None,
    }


def test_a_connection_that_was_closed_while_idle_is_made_again(
    server: Server, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostile.Handler, "protocol_version", "HTTP/1.1")
    monkeypatch.setattr("cache_tools.sharing.retry.RetryPolicy", lambda: RetryPolicy(retries=0))
    server.mischief = dict.fromkeys(digests(whole), (hostile.hanging_up, None))
    server.mischief |= {f"ledger/{name}": (hostile.hanging_up, None) for name in ("seal.json", "extent.json")}
    complete(pull(server.url, tmp_path), tmp_path, whole)


def test_a_web_server_that_holds_the_cache_is_not_pushed_to(server: Server, whole: Path) -> None:
    done = CliRunner().invoke(main, ["push", str(whole), server.url, "--i-may-share-this"])
    assert done.exit_code == 2
    assert done.stderr == f"error: {server.url}: HTTP is read-only; push to a folder that the server serves\n"
