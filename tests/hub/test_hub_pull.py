"""`comet-cache pull hf://datasets/…` through the real client: whole, in part, at a commit, and what the hub refuses."""

import re
from pathlib import Path

import pytest
from helpers.hub_clients import Clients, Ended
from helpers.hub_server import Hub

from cache_tools import Cache, build_cache, open_cache
from cache_tools.settings import BuildSettings
from cache_tools.verify.verify import verify

URL = "hf://datasets/lab/kin"


@pytest.fixture(scope="module")
def whole(hub: Hub, lines: list[str], sample_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """A cache, and a data set on the hub that holds its files."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "text.txt").write_text("\n".join(lines[:60]), encoding="utf-8")
    settings = BuildSettings(
        folder / "kin.zarr", "kin", str(sample_teacher), (str(folder / "text.txt"),), rows_per_shard=4, device="cpu"
    )
    cache = build_cache(settings)
    hub.add("datasets/lab/kin", files_of(cache))
    return cache


def files_of(cache: Cache) -> dict[str, bytes]:
    paths = [path for path in cache.root.rglob("*") if path.is_file()]
    return {path.relative_to(cache.root).as_posix(): path.read_bytes() for path in paths}


def pull(clients: Clients, folder: Path, *arguments: str) -> Ended:
    return clients.run("cache_tools", ["pull", *arguments], folder)


def test_a_cache_of_the_hub_is_pulled_in_part_and_whole(clients: Clients, whole: Cache, tmp_path: Path) -> None:
    for part in (["--max-tokens", "512", "--signals", "logits"], ["--id", whole.cache_id]):
        ended = pull(clients, tmp_path, URL, "kin.zarr", *part)
        assert (ended.code, ended.stderr) == (0, ""), ended
        assert verify(tmp_path / "kin.zarr", deep=True).damage == []
    assert open_cache(tmp_path / "kin.zarr").cache_id == whole.cache_id
    assert pull(clients, tmp_path, URL, "kin.zarr").stdout.startswith("nothing to copy\n")


@pytest.mark.slow
def test_an_older_commit_stays_what_it_was(hub: Hub, clients: Clients, whole: Cache, tmp_path: Path) -> None:
    first = hub.add("datasets/lab/moved", files_of(whole))
    hub.add("datasets/lab/moved", {"README.md": b"gone"})
    ended = pull(clients, tmp_path, f"hf://datasets/lab/moved@{first}", "kin.zarr", "--id", whole.cache_id)
    assert (ended.code, ended.stderr) == (0, ""), ended
    ended = pull(clients, tmp_path, "hf://datasets/lab/moved", "other.zarr")
    assert ended.code == 2
    assert ended.stderr == ("error: hf://datasets/lab/moved: no cache there, or an incomplete one: no zarr.json\n")


@pytest.mark.slow
def test_a_half_built_cache_of_the_hub(hub: Hub, clients: Clients, whole: Cache, tmp_path: Path) -> None:
    files = files_of(whole)
    hub.add(
        "datasets/lab/half", {path: content for path, content in files.items() if path != "ledger/train-00001.json"}
    )
    ended = pull(clients, tmp_path, "hf://datasets/lab/half", "kin.zarr")
    assert ended.code == 1
    assert ended.stderr.startswith("error: hf://datasets/lab/half: 1 shards are not built yet; all others are copied")
    hub.add("datasets/lab/half", files)
    assert pull(clients, tmp_path, "hf://datasets/lab/half", "kin.zarr", "--id", whole.cache_id).code == 0


def test_what_the_hub_refuses_is_one_line(hub: Hub, clients: Clients, whole: Cache, tmp_path: Path) -> None:
    hub.add("datasets/lab/gated", files_of(whole), gated=True)
    for name, code, said in (
        ("gated", 1, "the server answered 403; check the URL and your credentials"),
        ("nothing", 2, "no cache there, or an incomplete one: no zarr.json"),
    ):
        ended = pull(clients, tmp_path, f"hf://datasets/lab/{name}", "kin.zarr")
        assert ended.code == code
        assert re.fullmatch(rf"error: hf://datasets/lab/{name}\S*: {said}\n", ended.stderr), ended
    assert not (tmp_path / "kin.zarr").exists()


def test_a_push_to_the_hub_says_how(clients: Clients, whole: Cache, tmp_path: Path) -> None:
    ended = clients.run("cache_tools", ["push", str(whole.root), URL, "--i-may-share-this"], tmp_path)
    assert ended.code == 2
    assert ended.stderr == (
        f"error: {URL}: every file would be a commit of its own; push to a folder, then `hf upload-large-folder NAME "
        "FOLDER --repo-type dataset`\n"
    )
