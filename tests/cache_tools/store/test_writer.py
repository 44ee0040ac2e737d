"""Committing shards and claiming folders, with crashes and competitors in between."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import filelock
import numpy as np
import pytest
from helpers.small_caches import NUMERICS, commit, make_cache, prepare_cache, small_recipe

from cache_tools import open_cache
from cache_tools.errors import CometError
from cache_tools.signals import TOKEN_ARRAYS
from cache_tools.store.layout import group_arrays
from cache_tools.store.ledger import SEAL
from cache_tools.store.staging import claimed_folder, remove_abandoned
from cache_tools.store.writer import commit_shard

RECIPE = small_recipe()
PLACE = ("train", 1)
RECORD = "ledger/train-00001.json"


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    make_cache(tmp_path / "one")
    make_cache(tmp_path / "two")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_committing_again_leaves_the_first(tmp_path: Path) -> None:
    root = tmp_path / "kin.zarr"
    shards = make_cache(root)
    before = files_of(root)
    other = {name: array[::-1].copy() for name, array in shards[PLACE].items()}
    commit(root, RECIPE, PLACE, other, {"device": "another"})
    assert files_of(root) == before


def test_files_left_without_a_record_are_replaced(tmp_path: Path) -> None:
    """What a builder leaves that was killed between its files and its record."""
    root = tmp_path / "kin.zarr"
    shards = make_cache(root)
    before = files_of(root)
    (root / RECORD).unlink()
    (root / group_arrays(RECIPE, "train")["topk_id"].chunk_path(1)).write_bytes(b"half a file")
    (root / group_arrays(RECIPE, "train")["attention_gap"].chunk_path(1)).unlink()
    assert open_cache(root).missing("train") == [1]
    commit(root, RECIPE, PLACE, shards[PLACE])
    assert files_of(root) == before


@pytest.mark.slow
@pytest.mark.parametrize("step", range(7))
def test_a_crash_at_any_step_leaves_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Six arrays and a record are renamed into place, the record last; until then the shard does not exist."""
    root, staging = tmp_path / "kin.zarr", tmp_path / "staging"
    staging.mkdir()
    arrays = prepare_cache(root, RECIPE)[PLACE]
    teacher = {name: array for name, array in arrays.items() if name not in TOKEN_ARRAYS}
    renames = []

    def replace(source: Path, target: Path) -> None:
        if len(renames) == step:
            raise OSError(28, "No space left on device")
        renames.append(target)
        Path(source).rename(target)

    monkeypatch.setattr(os, "replace", replace)
    tokens = open_cache(root).read_tokens(*PLACE)[1]
    arguments = (root, staging, RECIPE, *PLACE, teacher, tokens, NUMERICS)
    if step <= len(teacher):
        message = rf"^shard train 1 of {root}: cannot be written \(No space left on device\); shards committed before "
        with pytest.raises(CometError, match=message):
            commit_shard(*arguments)
        assert open_cache(root).missing("train") == [0, 1, 2]
    else:
        commit_shard(*arguments)
        assert renames[-1] == root / RECORD
        assert open_cache(root).missing("train") == [0, 2]


def test_every_file_is_on_the_disk_before_the_record_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut must not leave a record whose files are empty: fsync each file, then its folder, then the record."""
    root, events = tmp_path / "kin.zarr", []
    arrays = prepare_cache(root, RECIPE)[PLACE]
    fsync, replace = os.fsync, os.replace

    def noting_fsync(descriptor: int) -> None:
        events.append(("fsync", os.path.realpath(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def noting_replace(source: Path, target: Path) -> None:
        events.append(("replace", str(target)))
        assert ("fsync", str(source)) in events
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "replace", noting_replace)
    commit(root, RECIPE, PLACE, arrays)
    record = events.index(("replace", str(root / RECORD)))
    for name in set(arrays) - set(TOKEN_ARRAYS):
        final = root / group_arrays(RECIPE, "train")[name].chunk_path(1)
        placed = events.index(("replace", str(final)))
        assert ("fsync", str(final.parent)) in events[placed:record]
        new = final.parent.parent  # the folder c, whose first shard this is
        assert ("fsync", str(new)) in events[placed:record] and ("fsync", str(new.parent)) in events[placed:record]
    assert ("fsync", str(root / "ledger")) in events[record:]


def test_every_sealed_file_is_on_the_disk_before_the_seal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that libraries write, too: an empty zarr.json under a seal makes all later shards worthless."""
    root, synced, fsync = tmp_path / "kin.zarr", list[str](), os.fsync

    def noting_fsync(descriptor: int) -> None:
        synced.append(os.path.relpath(os.path.realpath(f"/proc/self/fd/{descriptor}"), root))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    prepare_cache(root, RECIPE)
    assert synced[-1] == SEAL
    assert set(files_of(root)) <= set(synced)


@pytest.mark.parametrize("wrong", ["missing", "unknown", "a token array"])
def test_only_the_arrays_of_the_recipe_are_committed(tmp_path: Path, wrong: str) -> None:
    root = tmp_path / "kin.zarr"
    arrays = prepare_cache(root, RECIPE)[PLACE]
    teacher = {name: array for name, array in arrays.items() if name not in TOKEN_ARRAYS}
    if wrong == "missing":
        del teacher["topk_id"]
    else:
        teacher["length" if wrong == "a token array" else "colour"] = np.zeros(4)
    with pytest.raises(ValueError, match="shard train 1: expected arrays "):
        commit_shard(root, tmp_path, RECIPE, *PLACE, teacher, {}, NUMERICS)


def test_a_claimed_folder_lasts_as_long_as_its_claim(tmp_path: Path) -> None:
    with claimed_folder(tmp_path, ".staging-") as folder:
        (folder / "file").write_text("work")
        assert folder.parent == tmp_path
        assert folder.name.startswith(".staging-")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_goes_while_it_is_claimed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when another process takes it for abandoned; the library of locks then reports either error."""
    errors: list[OSError] = [FileExistsError(), FileNotFoundError()]
    acquire = filelock.FileLock.acquire

    def gone_at_first(lock: filelock.FileLock, *arguments: Any, **named: Any) -> Any:
        if errors:
            shutil.rmtree(Path(lock.lock_file).parent)
            raise errors.pop()
        return acquire(lock, *arguments, **named)

    monkeypatch.setattr(filelock.FileLock, "acquire", gone_at_first)
    with claimed_folder(tmp_path, ".staging-") as folder:
        assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert not errors and not list(tmp_path.iterdir())


def test_a_claimed_folder_is_removed_after_an_error(tmp_path: Path) -> None:
    with contextlib.suppress(KeyError), claimed_folder(tmp_path, ".staging-") as folder:
        (folder / "file").write_text("work")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_folders_of_the_living_are_kept_and_of_the_dead_removed(tmp_path: Path) -> None:
    """The dead one is really killed: nothing is left of it but a folder and an unlocked file."""
    program = (
        "import filelock, pathlib, signal, sys\n"
        "folder = pathlib.Path(sys.argv[1]); folder.mkdir(); (folder / 'work').write_text('x')\n"
        "lock = filelock.FileLock(folder / 'lock'); lock.acquire(); print('ready', flush=True); signal.pause()\n"
    )
    owners = {}
    for name in ("living", "dead"):
        command = [sys.executable, "-c", program, str(tmp_path / f".staging-{name}")]
        owners[name] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    (tmp_path / ".staging-never-locked").mkdir()
    (tmp_path / "other").mkdir()
    try:
        for owner in owners.values():
            assert owner.stdout is not None
            assert owner.stdout.readline() == "ready\n"
        owners["dead"].send_signal(signal.SIGKILL)
        owners["dead"].wait()
        with claimed_folder(tmp_path, ".staging-") as folder:
            assert {path.name for path in tmp_path.iterdir()} == {".staging-living", folder.name, "other"}
            assert (tmp_path / ".staging-living" / "work").read_text() == "x"
    finally:
        for owner in owners.values():
            owner.kill()
            owner.wait()
            assert owner.stdout is not None
            owner.stdout.close()


@pytest.mark.parametrize(("module", "call"), [(os, "open"), (fcntl, "flock")])
def test_two_claims_at_the_same_moment_leave_each_other_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, call: str
) -> None:
    """Many workers start at once: another looks for dead folders just before this one opens, or locks, its own."""
    original, others = getattr(module, call), []

    def after_another_claim(*arguments: Any, **named: Any) -> Any:
        target = arguments[0] if call == "open" else os.readlink(f"/proc/self/fd/{arguments[0]}")
        if not others and str(target).startswith(str(tmp_path)):
            others.append(target)
            with claimed_folder(tmp_path, ".staging-"):
                pass
        return original(*arguments, **named)

    monkeypatch.setattr(module, call, after_another_claim)
    with claimed_folder(tmp_path, ".staging-") as folder:
        assert others
        (folder / "file").write_text("work")
        remove_abandoned(tmp_path, ".staging-")
        assert (folder / "file").read_text() == "work"
    assert list(tmp_path.iterdir()) == []
