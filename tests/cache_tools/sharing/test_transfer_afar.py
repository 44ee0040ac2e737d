"""Moving a cache to a place that is no folder and back: nothing there is overwritten, and errors are one line."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from click.testing import Result
from helpers.commands import pull, run
from helpers.small_caches import make_cache, small_recipe

from cache_tools import Cache
from cache_tools.errors import CometError
from cache_tools.sharing.listing import read_listing
from cache_tools.sharing.locations import remote
from cache_tools.sharing.locations.remote import Remote
from cache_tools.sharing.parts import bytes_of
from cache_tools.sharing.retry import RetryPolicy

POLICY = RetryPolicy(retries=2, pause=0.01)


def push(folder: object, destination: object) -> Result:
    return run("push", folder, destination, "--i-may-share-this")


def test_a_place_that_is_no_folder(whole: Cache, memory: str, tmp_path: Path) -> None:
    assert push(whole.root, memory).exit_code == 0
    assert pull(memory, tmp_path / "there").cache_id == whole.cache_id
    assert "nothing to copy" in push(whole.root, memory).stdout
    assert fsspec.filesystem("memory").cat("/lab/kin/README.md").startswith(b"---\nlanguage: ")


def test_info_of_a_url_is_that_of_the_folder(whole: Cache, memory: str) -> None:
    assert push(whole.root, memory).exit_code == 0
    here, there = (json.loads(run("info", place, "--json").stdout) for place in (whole.root, memory))
    assert here.pop("bytes") >= there.pop("bytes") == bytes_of(whole.seal, whole.extent, whole.records().values())
    assert here == there
    assert run("info", memory).stdout.startswith(f"{memory}: complete\n")
    assert run("info", memory, "--toml").stdout == run("info", whole.root, "--toml").stdout
    fsspec.filesystem("memory").rm("/lab/kin/ledger/train-00001.json")
    assert run("info", memory).stdout.startswith(f"{memory}: 3 of 4 shards built\n")
    missing = run("info", "memory://lab/none")
    assert missing.exit_code == 2
    assert missing.stderr == "error: memory://lab/none: no cache there, or an incomplete one: no zarr.json\n"


@pytest.mark.parametrize(
    "call", [("verify", "{}"), ("repair", "{}"), ("attach", "{}", "--text", "a.txt"), ("subset", "{}", "part.zarr"),
             ("merge", "{}", "whole.zarr"), ("subset", "kin.zarr", "{}")],
)  # fmt: skip
def test_commands_on_folders_say_so_of_a_url(call: tuple[str, ...]) -> None:
    """The path of a URL has one slash less, and of that there is no such cache."""
    url = "https://lab.example.org/kin.zarr"
    done = run(*(argument.format(url) for argument in call))
    assert done.exit_code == 2
    assert (
        done.stderr == f"error: {url}: expected a folder; to copy a cache from a URL into one, use comet-cache pull\n"
    )


def test_push_never_touches_another_cache_or_other_files(whole: Cache, memory: str, tmp_path: Path) -> None:
    make_cache(tmp_path / "other", small_recipe(seed=7))
    push(whole.root, memory)
    before = fsspec.filesystem("memory").find("/lab", detail=True)
    done = push(tmp_path / "other", memory)
    assert done.exit_code == 2
    assert done.stderr == f"error: {memory}: holds another cache; choose another location (seed: 0 against 7)\n"
    fsspec.filesystem("memory").pipe("/lab/thesis/chapter.tex", b"mine")
    done = push(whole.root, "memory://lab/thesis")
    assert done.stderr == "error: memory://lab/thesis: holds files, but no cache; choose an empty location\n"
    assert fsspec.filesystem("memory").find("/lab/kin", detail=True) == before


def test_a_killed_push_s_first_file_is_not_in_the_way(whole: Cache, memory: str) -> None:
    fsspec.filesystem("memory").pipe("/lab/kin/zarr.json.part-0123abc", b"half")
    assert push(whole.root, memory).exit_code == 0


def test_a_file_that_cannot_be_written_from_afar_is_one_line(
    whole: Cache, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object, path: str, value: bytes, **options: object) -> None:
        raise PermissionError("no key of ann:secret may write s3://ann:secret@lab/kin?token=1")

    monkeypatch.setattr("cache_tools.sharing.retry.RetryPolicy", lambda: POLICY)
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "pipe_file", refuse)
    done = push(whole.root, memory)
    assert done.exit_code == 1
    assert done.stderr == (
        f"error: {memory}/zarr.json: PermissionError no key of ann:secret may write s3://lab/kin; check the URL and "
        "your credentials\n"
    )


def test_what_comes_too_slowly_is_given_up(whole: Cache, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever kind of server it is."""
    push(whole.root, memory)
    read = Remote._read

    def slowly(self: Remote, path: str) -> Iterator[bytes]:
        for block in read(self, path):
            time.sleep(0.02)
            yield block

    monkeypatch.setattr(Remote, "_read", slowly)
    with pytest.raises(CometError, match=r"zarr\.json: slower than 16 KiB a second; run the same command again"):
        read_listing(Remote(memory, RetryPolicy(timeout=0.005, retries=0)), POLICY)


def test_what_is_missing_for_a_kind_of_url_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "find_spec", lambda name: None)
    with pytest.raises(CometError, match=r"^s3://lab/kin: needs s3fs; in the checkout, pip install '.\[s3\]'$"):
        Remote("s3://lab/kin", POLICY)


def test_what_libraries_say_is_repeated_without_secrets() -> None:
    location = Remote("https://ann:pass%21word@lab.example.org/kin?token=s3cret", POLICY)
    said = location._reason(
        OSError("no s3cret or pass!word (pass%21word) for https://ann:pass%21word@lab.example.org/kin")
    )
    assert said == "OSError no … or … (…) for https://lab.example.org/kin"
