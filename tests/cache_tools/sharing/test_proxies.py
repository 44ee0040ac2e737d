"""Proxies as people write them into the environment, with a real one on the loopback address."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from helpers import hostile_server as hostile
from helpers.commands import run
from helpers.hostile_server import Server
from helpers.small_caches import make_cache, small_recipe

from cache_tools import open_cache
from cache_tools.errors import CometError
from cache_tools.sharing.locations.proxies import proxy_for
from cache_tools.sharing.retry import RetryPolicy

ASKED = "Basic bWU6cGFzcyF3b3Jk"  # me:pass!word
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr("cache_tools.sharing.retry.RetryPolicy", lambda: RetryPolicy(timeout=5, retries=0))


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    make_cache(tmp_path / "kin.zarr", small_recipe())
    return tmp_path / "kin.zarr"


@pytest.fixture
def proxy(whole: Path) -> Iterator[Server]:
    """A server that takes whole URLs, as proxies do, whatever host they name."""
    with hostile.serving(whole) as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("form", ["http://localhost:PORT", "localhost:PORT", "127.0.0.1:PORT/", "//localhost:PORT"])
def test_it_is_used(
    proxy: Server, whole: Path, tmp_path: Path, variable: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, form.replace("PORT", str(proxy.server_port)))
    assert run("pull", "http://cache.invalid", tmp_path / "mine").exit_code == 0
    assert open_cache(tmp_path / "mine").cache_id == open_cache(whole).cache_id
    assert all(headers["path"].startswith("http://cache.invalid/") for headers in proxy.headers_seen)
    assert {headers["Host"] for headers in proxy.headers_seen} == {"cache.invalid"}


def test_one_on_the_machine_of_the_server_is_used(
    proxy: Server, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url)
    with hostile.serving(whole) as server:
        assert run("pull", server.url, tmp_path / "mine").exit_code == 0
        assert not server.requests
    assert all(headers["path"].startswith(f"{server.url}/") for headers in proxy.headers_seen)


def test_its_password_goes_to_it_alone(proxy: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"me:pass%21word@localhost:{proxy.server_port}")
    assert run("pull", "http://ann:secret@cache.invalid", tmp_path / "mine").exit_code == 0
    assert {headers.get("Proxy-Authorization") for headers in proxy.headers_seen} == {ASKED}
    assert {headers.get("Authorization") for headers in proxy.headers_seen} == {"Basic YW5uOnNlY3JldA=="}
    assert all("@" not in headers["path"] for headers in proxy.headers_seen)
    proxy.headers_seen.clear()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert run("pull", proxy.url, tmp_path / "direct").exit_code == 0
    assert {headers.get("Proxy-Authorization") for headers in proxy.headers_seen} == {None}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            "http://me:pass!word@localhost:PORT",
            "the proxy of http_proxy answered 407: it asks for USER:PASSWORD@ before its",
        ),
        ("http://me:pass!word@localhost:9", "Connection refused, at the proxy of http_proxy"),
        (
            "socks5://me:pass!word@localhost:PORT",
            "http_proxy: expected http://HOST:PORT, with USER:PASSWORD@ before the",
        ),
        ("https://localhost:PORT", "http_proxy: expected http://HOST:PORT"),
        ("http://me:pass!word@", "http_proxy: expected http://HOST:PORT"),
        ("localhost:pass!word", "http_proxy: expected http://HOST:PORT"),
        ("localhost:99999", "http_proxy: expected http://HOST:PORT"),
    ],
)
def test_the_line_names_the_variable_and_no_password(
    proxy: Server, tmp_path: Path, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.mischief["zarr.json"] = hostile.answering(407), None
    monkeypatch.setenv("http_proxy", value.replace("PORT", str(proxy.server_port)))
    done = run("pull", "http://cache.invalid", tmp_path / "mine")
    assert done.exit_code in (1, 2) and done.stderr.count("\n") == 1
    assert said in done.stderr and "pass!word" not in done.output


@pytest.mark.parametrize(
    ("no_proxy", "url", "is_used"),
    [
        ("", "http://lab.org/x", True),
        ("*", "http://lab.org/x", False),
        ("lab.org", "http://www.lab.org/x", False),
        (".lab.org", "http://www.lab.org/x", False),
        ("lab.org:80", "http://lab.org/x", False),
        ("lab.org:8080", "http://lab.org/x", True),
        ("other.org, lab.org:8080", "http://lab.org:8080/x", False),
        ("127.0.0.1:81", "http://127.0.0.1:81/x", False),
        ("::1", "http://[::1]:81/x", False),
        ("[::1]:81", "http://[::1]:81/x", False),
        ("10.0.0.0/8", "http://10.1.2.3/x", False),
        ("10.0.0.0/8", "http://11.1.2.3/x", True),
    ],
)
def test_exemptions(no_proxy: str, url: str, is_used: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "proxy:3128")
    monkeypatch.setenv("no_proxy", no_proxy)
    assert (proxy_for(urlsplit(url)) is not None) == is_used


def test_each_kind_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "one:1")
    monkeypatch.setenv("ALL_PROXY", "me@[::2]")
    one, other = proxy_for(urlsplit("https://lab.org")), proxy_for(urlsplit("http://lab.org"))
    assert one is not None and (one.variable, one.host, one.port, one.headers) == ("https_proxy", "one", 1, {})
    assert other is not None and (other.variable, other.host, other.port) == ("ALL_PROXY", "::2", 80)
    monkeypatch.setenv("https_proxy", "ftp://one")
    with pytest.raises(
        CometError, match=r"^https_proxy: expected http://HOST:PORT, .*; or exempt lab.org by no_proxy$"
    ):
        proxy_for(urlsplit("https://lab.org"))
