"""A start travels with its cache: read in part from a server, given away only with consent to the teacher's licence."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import hostile_server as hostile
from helpers.small_caches import commit, prepare_cache, shard_keys, small_recipe

from cache_tools import Cache, open_cache
from cache_tools.cli.main import main
from cache_tools.settings import LocalCache
from cache_tools.sharing.remote_shards import open_remote
from cache_tools.sharing.retry import RetryPolicy
from cache_tools.store.ledger import CARD
from cache_tools.store.recipe import Recipe
from cache_tools.store.start import read_start, start_arrays, start_chunks

FREE = {"name": "corpus.txt", "licence": "cc0-1.0"}
NARROW = small_recipe()
WIDE = replace(
    NARROW,
    teacher_hidden=1024,
    teacher_heads=16,
    start_layers=(0, 1),
    start_width=1024,
    start_neurons=1024,
    start_positions=16,
    start_rows=8,
)


def made(root: Path, licence: str | None, recipe: Recipe = NARROW, text: dict[str, str] = FREE) -> Cache:
    """A complete small cache with a start, of a text that by default anyone may share."""
    provenance = {"language": "kin", "teacher": "lab/teacher", "teacher_licence": licence, "text": [text]}
    shards = prepare_cache(root, recipe, attributes={"provenance": provenance})
    for key in shard_keys(recipe):
        commit(root, recipe, key, shards[key])
    return open_cache(root)


def test_from_a_server_only_the_chunks_of_a_narrow_student_are_read_and_once(tmp_path: Path) -> None:
    whole = made(tmp_path / "kin.zarr", "mit", WIDE)
    region = slice(1, 2), slice(0, 4), slice(0, 256), slice(0, 200)
    local, policy = LocalCache(tmp_path / "local", 10**8), RetryPolicy(retries=2, pause=0.02)
    expected = read_start(whole, "attention", *region)
    with hostile.serving(whole.root) as server:
        for _ in range(2):
            found = read_start(open_remote(server.url, local, policy), "attention", *region)
            np.testing.assert_array_equal(found, expected)
        asked = {path: times for path, times in server.requests.items() if path in start_chunks(WIDE)}
        assert asked == {"start/attention/c/1/0/0/0": 1}


def test_a_copy_has_the_start(tmp_path: Path) -> None:
    whole = made(tmp_path / "kin.zarr", "mit")
    push, subset = (
        ["push", str(whole.root), str(tmp_path / "pushed")],
        ["subset", str(whole.root), str(tmp_path / "part")],
    )
    for command in (push, [*subset, "--max-tokens", "1"]):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.output
    for name in ("pushed", "part"):
        for array in start_arrays(whole.recipe):
            np.testing.assert_array_equal(read_start(open_cache(tmp_path / name), array), read_start(whole, array))
    card = (tmp_path / "pushed" / CARD).read_text()
    assert "this cache contains layers of lab/teacher, under its licence (mit) |" in card


@pytest.mark.slow
@pytest.mark.parametrize("licence", [None, "cc-by-nc-4.0", "llama3, gated", "licence not stated, gated"])
@pytest.mark.parametrize("option", [[], ["--detach-text"]])
def test_layers_of_a_teacher_without_a_free_licence_need_consent(
    tmp_path: Path, licence: str | None, option: list[str]
) -> None:
    cache = made(tmp_path / "kin.zarr", licence)
    command = ["push", str(cache.root), str(tmp_path / "there"), *option]
    done = CliRunner().invoke(main, command)
    shown = licence or "licence not stated"
    assert done.exit_code == 2 and not (tmp_path / "there").exists()
    assert f"a cache holds layers of lab/teacher, under its licence ({shown})\n" in done.stdout
    assert done.stderr == (
        f"error: {cache.root}: the licence of layers of lab/teacher ({shown}) is unknown or restricts its use; if you "
        "may share it, say so with --i-may-share-this; if not, build the cache with --start-layers none\n"
    )
    assert CliRunner().invoke(main, [*command, "--i-may-share-this"]).exit_code == 0


def test_text_and_layers_without_a_licence_are_named_together(tmp_path: Path) -> None:
    cache = made(tmp_path / "kin.zarr", None, text={"name": "corpus.txt"})
    done = CliRunner().invoke(main, ["push", str(cache.root), str(tmp_path / "there")])
    assert (done.exit_code, done.stderr) == (
        2,
        f"error: {cache.root}: the licences of corpus.txt (licence not stated) and layers of lab/teacher (licence not "
        "stated) are unknown or restrict use; if you may share them, say so with --i-may-share-this; if not, leave the "
        "text out with --detach-text, and build the cache with --start-layers none\n",
    )


def test_without_a_start_the_teachers_licence_is_no_concern(tmp_path: Path) -> None:
    none = {"start_layers": (), "start_width": 0, "start_neurons": 0, "start_positions": 0, "start_rows": 0}
    cache = made(tmp_path / "kin.zarr", None, replace(NARROW, **none))
    done = CliRunner().invoke(main, ["push", str(cache.root), str(tmp_path / "there")])
    assert done.exit_code == 0 and "layers of" not in done.output
    assert "| start | none: students begin with a random body |" in (tmp_path / "there" / CARD).read_text()
