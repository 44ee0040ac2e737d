"""What people write for a place: a path, a URL, or something between; and that no secret of a URL is ever shown."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from cache_tools.cli.main import main
from cache_tools.errors import CometError
from cache_tools.places.urls import is_url, local_path, name_of, parse_url, printable_url, without_secrets
from comet.cli.train import train

SECRET = "s3cr3t"
FORM = "expected SCHEME://HOST:PORT/PATH, the port from 1 to 65535, an IPv6 address in brackets"


@pytest.mark.parametrize("path", ["kin.zarr", "./a?b=c", "/lab/me:x@c", "a:b", "x y", "C:\\kin", "~/a?b=c"])
def test_paths(path: str) -> None:
    assert not is_url(path) and printable_url(path) == path and without_secrets(path) == path


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("HTTP://lab/kin", "HTTP://lab/kin"),
        ("http://[::1]:80/kin/", "http://[::1]:80/kin"),
        (f"http://me:{SECRET}@[::1]:80/kin", "http://[::1]:80/kin"),
        (f"https://ann:{SECRET}@x@host:8080/kin/?token=x#y", "https://host:8080/kin"),
        (f"https://host/?X-Amz-Signature={SECRET}/", "https://host"),
        ("https://host:8080/data@v2/kin", "https://host:8080/data@v2/kin"),
        ("http://host:/kin", "http://host:/kin"),
        ("http://host/a b/kin%20c", "http://host/a b/kin%20c"),
        ("s3://bucket/kin", "s3://bucket/kin"),
        ("hf://datasets/lab/kin@0123abc", "hf://datasets/lab/kin@0123abc"),
        (f"ssh://me:{SECRET}@host/kin", "ssh://host/kin"),
    ],
)
def test_urls_are_shown_without_secrets(url: str, shown: str) -> None:
    assert is_url(url) and parse_url(url).scheme == url.partition(":")[0].lower()
    assert printable_url(url) == shown
    assert without_secrets(f"see {url}, or ({url}): no") == f"see {shown}, or ({shown}): no" or " " in url


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http:///kin", f"http:///kin: has no host; {FORM}"),
        (f"http://me:{SECRET}@/kin", f"http:///kin: has no host; {FORM}"),
        ("s3:///kin", "s3:///kin: has no host; "),
        ("http://::1:8000/kin", f"http://::1:8000/kin: {FORM}"),
        ("http://[::1/kin", f"http://[::1/kin: {FORM}"),
        ("http://host:0/kin", f"http://host:0/kin: {FORM}"),
        ("http://host:99999/kin", f"http://host:99999/kin: {FORM}"),
        ("http://ho st/kin", f"http://ho st/kin: {FORM}"),
        (f"http://me:{SECRET}/{SECRET}@host/kin", f"http://…: {FORM}"),
        (f"http://me:{SECRET}?{SECRET}@host/kin", f"http://…: {FORM}"),
        (f"http://me:{SECRET}#{SECRET}@host/kin", f"http://…: {FORM}"),
        ("http://host/kin\n", "http://host/kin\\n: holds characters that no URL has; write them as %20"),
        (f"zip::https://me:{SECRET}@host/kin", "zip::https://host/kin: chained URLs are not supported"),
        (f"s3://key:{SECRET}@bucket/kin", "s3://bucket/kin: holds credentials; give them by the variables or files"),
        (f"s3://bucket/kin?v={SECRET}", "s3://bucket/kin: has a query, which means nothing at s3://; omit"),
        (
            "ssh://[::1]:22/kin",
            "ssh://[::1]:22/kin: IPv6 addresses and :: are not supported here; give the host a name",
        ),
        ("file://other/kin", "file://other/kin: expected file:///PATH, of this machine, ? written as %3F"),
        ("file:///a%00b", "file:///a%00b: holds a NUL, which no path has"),
    ],
)
def test_urls_that_lead_nowhere_are_refused_at_once(url: str, said: str) -> None:
    assert is_url(url)
    with pytest.raises(CometError) as refused:
        parse_url(url)
    assert str(refused.value).startswith(said)
    assert refused.value.exit_code == 2 and SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", "'': expected the path of a folder, or a URL"),
        (" ", "' ': expected the path of a folder, or a URL"),
        ("a\0b", "'a\\x00b': expected the path of a folder, or a URL"),
        ("https:/host/kin", "https:/host/kin: neither a folder nor a URL; did you mean https://…?"),
        (f"https:/me:{SECRET}@host/kin", "https…: neither a folder nor a URL; did you mean https://…?"),
        (f"HTTPS//me:{SECRET}@host/kin", "HTTPS…: neither a folder nor a URL; did you mean https://…?"),
        (f"https:me:{SECRET}@host/kin", "https…: neither"),
        (f"https:\\\\me:{SECRET}@host\\kin", "https…: neither"),
        (f"me:{SECRET}@host/kin", "…: neither a folder nor a URL; did you mean https://…?"),
        (f"//me:{SECRET}@host/kin", "…: neither"),
        (f"host/kin.zarr?sig={SECRET}", "…: neither"),
        (f" https://me:{SECRET}@host/kin", "…: neither"),
    ],
)
def test_what_is_neither(typed: str, said: str) -> None:
    with pytest.raises(CometError) as refused:
        is_url(typed)
    assert str(refused.value).startswith(said) and refused.value.exit_code == 2 and SECRET not in str(refused.value)


@pytest.mark.parametrize("host", ["bea@lab", "lab", "bea@lab.example.org", "lab.example.org", "10.0.0.7"])
@pytest.mark.parametrize("path", ["kin.zarr", "data/kin.zarr", "/data/kin.zarr", "", "~/kin.zarr"])
def test_an_address_of_scp_is_no_folder(host: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be a folder here, on a disk that is lost with the borrowed machine, and the copy called complete."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CometError) as refused:
        is_url(f"{host}:{path}")
    assert refused.value.exit_code == 2 and str(refused.value) == (
        f"{host}:{path}: looks like an address of scp; write ssh:// before it, and / instead of the colon, with the "
        f"path from the root of the server; or ./{host}:{path} for a folder of this name"
    )
    assert not is_url(f"./{host}:{path}")
    (tmp_path / f"{host}:{path}").mkdir(parents=True, exist_ok=True)
    assert is_url(f"{host}:{path}") is False, "there is such a folder"


def test_files_by_url() -> None:
    for url in ("FILE:///lab/a%20b", "file://localhost/lab/a%20b"):
        assert local_path(parse_url(url)) == Path("/lab/a b")


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("lab/kin.zarr", "kin.zarr"),
        (f"http://me:{SECRET}@127.0.0.1:80/?token={SECRET}", "127.0.0.1"),
        (f"http://me:{SECRET}@[::1]:80", "1"),
        (f"https://host/a/kin%20b.zarr/?{SECRET}", "kin-b.zarr"),
        ("https://host/a/..%2Fkin", "kin"),
        ("hf://datasets/lab/kin@0123abc", "kin-0123abc"),
    ],
)
def test_names_of_files_that_come_of_a_place(location: str, name: str) -> None:
    assert name_of(location) == name


URLS = (
    f"https://me:{SECRET}@host:99999/kin",
    f"https:/me:{SECRET}@host/kin",
    f"gopher://me:{SECRET}@host/kin?sig={SECRET}",
    f"me:{SECRET}@host/kin",
)


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize(
    "call", [["pull", "URL", "there"], ["pull", "there", "URL"], ["push", "there", "URL"], ["info", "URL"]]
)
def test_commands_refuse_them_in_one_line(call: list[str], url: str, tmp_path: Path) -> None:
    words = [url if word == "URL" else str(tmp_path / word) for word in call[1:]]
    done = CliRunner().invoke(main, [call[0], *words])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert SECRET not in done.output and not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", URLS)
def test_a_training_refuses_them_in_one_line(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(train, ["--cache", url, "--local-cache", str(tmp_path / "local")])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert SECRET not in done.output


@pytest.mark.parametrize("command", ["verify", "repair", "subset", "merge", "attach"])
def test_commands_that_take_no_url_do_not_repeat_it(command: str, tmp_path: Path) -> None:
    call = [command, f"https://me:{SECRET}@host/kin?sig={SECRET}", *[str(tmp_path)] * (command in ("subset", "merge"))]
    done = CliRunner().invoke(
        main, [*call, *["--detach-text"] * (command == "subset"), *["--text", "x"] * (command == "attach")]
    )
    assert done.exit_code == 2 and "https://host/kin: expected a folder" in done.stderr and SECRET not in done.output


def test_words_too_many_are_not_repeated_with_secrets() -> None:
    for command, call in ((main, ["pull", "a", "b"]), (train, ["--cache", "a"])):
        done = CliRunner().invoke(command, [*call, f"https://me:{SECRET}@host/kin?sig={SECRET}"])
        assert done.exit_code == 2 and "https://host/kin" in done.stderr + done.output and SECRET not in done.output
