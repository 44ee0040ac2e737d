"""A folder as a location: what a cache must not hold there is refused, neither followed nor waited for."""

import os
import shutil
from pathlib import Path

import pytest
from helpers.commands import run
from helpers.small_caches import make_cache

SHARD_FILE, RECORD, ROOT = "train/length/c/0", "ledger/train-00000.json", "zarr.json"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("path", [SHARD_FILE, RECORD, ROOT])
def test_a_pipe_is_not_waited_for(tmp_path: Path, path: str) -> None:
    make_cache(tmp_path / "kin.zarr")
    (tmp_path / "kin.zarr" / path).unlink()
    os.mkfifo(tmp_path / "kin.zarr" / path)
    done = run("pull", tmp_path / "kin.zarr", tmp_path / "copy")
    assert done.exit_code == 1 and f"{path}: a pipe or a device; a cache holds files only" in done.stderr


@pytest.mark.parametrize("path", [SHARD_FILE, RECORD, ROOT, "train/length"])
def test_a_link_is_not_followed(tmp_path: Path, path: str) -> None:
    make_cache(tmp_path / "kin.zarr")
    shutil.move(tmp_path / "kin.zarr" / path, tmp_path / "elsewhere")
    (tmp_path / "kin.zarr" / path).symlink_to(tmp_path / "elsewhere")
    done = run("pull", tmp_path / "kin.zarr", tmp_path / "copy")
    assert done.exit_code == 1 and f"{path}: a link; a cache holds files only. Replace it by a copy" in done.stderr


def test_a_linked_folder_is_not_written_through(tmp_path: Path) -> None:
    make_cache(tmp_path / "kin.zarr")
    for folder in ("copy", "elsewhere"):
        (tmp_path / folder).mkdir()
    (tmp_path / "copy/train").symlink_to(tmp_path / "elsewhere")
    assert run("pull", tmp_path / "kin.zarr", tmp_path / "copy").exit_code != 0
    assert list((tmp_path / "elsewhere").iterdir()) == []
