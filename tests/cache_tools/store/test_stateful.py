"""The store against a model in memory, and every call cut off before one of its file operations, at many of them."""

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.crashes import crashing
from helpers.small_caches import Shards, commit, make_cache, prepare_cache, shard_keys, small_recipe
from helpers.store_machine import StoreMachine
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from cache_tools.errors import CometError
from cache_tools.store.copy import cut
from cache_tools.store.ledger import Extent, whole_extent
from cache_tools.store.reader import open_cache
from cache_tools.store.writer import drop_shard

RECIPE = small_recipe(attention_layers=(), top_k=2)
PLACE = ("train", 1)


@pytest.mark.slow
def test_a_cache_holds_what_it_should_or_says_so() -> None:
    """`benchmarks/reliability.py` does the same five hundred times."""
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=12,
            stateful_step_count=15,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def files_of(folder: Path) -> dict[str, bytes]:
    """All files but locks and what is on its way, by relative path."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if ".staging" not in name and not name.endswith("lock")}


def sound_shards(root: Path, shards: Shards) -> set[tuple[str, int]]:
    """The shards that can be read; what is read is what was written."""
    cache = open_cache(root)
    found = set()
    for group, shard in shard_keys(RECIPE):
        try:
            arrays = cache.read_shard(group, shard)
        except CometError:
            continue
        for name, array in arrays.items():
            assert array.tobytes() == shards[group, shard][name].tobytes()
        found.add((group, shard))
    return found


def of_two_shards() -> Extent:
    return replace(whole_extent(RECIPE), shards={"train": ((1, 3),), "validation": ()})


CALLS: dict[str, Callable[[Path, Path, Shards], object]] = {
    "commit": lambda whole, root, shards: commit(root, RECIPE, PLACE, shards[PLACE]),
    "drop": lambda whole, root, shards: drop_shard(open_cache(root), *PLACE),
    "cut": lambda whole, root, shards: cut(open_cache(whole), root, of_two_shards()),
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: the tests wait for thousands of files to be on the disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as name:
        yield Path(name)


def instants(operations: int) -> list[int]:
    """All of them; of many, whose middle repeats itself, the first and last ones and some between."""
    ends = {*range(operations)[:16], *range(operations)[-16:]}
    return sorted({*ends, *random.Random(operations).sample(range(operations), min(operations, 16))})


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_a_crash_at_any_step_loses_nothing_but_the_call(folder: Path, name: str) -> None:
    """Whatever the call had done, what there is is sound, and calling again ends where an undisturbed call ends."""
    whole, shards = folder / "whole", make_cache(folder / "whole", RECIPE)
    prepare_cache(folder / "prepared", RECIPE)
    before = {"commit": folder / "prepared", "drop": whole}.get(name)

    def begin(attempt: str) -> Path:
        root = folder / attempt / "kin.zarr"
        if before is not None:
            shutil.copytree(before, root)
        return root

    root = begin("undisturbed")
    with crashing(root.parent, None) as counted:
        CALLS[name](whole, root, shards)
    expected = files_of(root)
    assert counted.operations > 5
    for at in instants(counted.operations):
        root = begin(f"dies at {at}")
        with crashing(root.parent, at) as watch:
            CALLS[name](whole, root, shards)
        assert watch.crashed
        if (root / "ledger/seal.json").exists():
            others = sound_shards(root, shards) - {PLACE}
            assert others == ({("train", 0), ("train", 2), ("validation", 0)} if name == "drop" else others)
        shutil.rmtree(root.parent / "kin.zarr.staging", ignore_errors=True)  # what small_caches.commit works in
        CALLS[name](whole, root, shards)
        assert files_of(root) == expected, at
        assert not list(root.glob(".staging-*"))


def test_what_a_crash_tears_is_not_taken_for_whole(tmp_path: Path) -> None:
    """The simulation itself: the file that was written last is cut off, and nothing after the crash is done."""
    with crashing(tmp_path, 2) as watch:
        (tmp_path / "one").write_bytes(b"1" * 1000)
        (tmp_path / "two").write_bytes(b"2" * 1000)
        try:
            (tmp_path / "three").write_bytes(b"3")
        finally:
            (tmp_path / "one").unlink()
    assert watch.crashed
    assert (tmp_path / "one").read_bytes() == b"1" * 1000
    assert (tmp_path / "two").stat().st_size < 1000
    assert not (tmp_path / "three").exists()
