"""Places: what may be created where, decided before any work is done."""

import errno
import os
from pathlib import Path

import pytest

from cache_tools.errors import CometError
from cache_tools.places.destinations import (
    LONGEST_NAME,
    enclosing_cache,
    require_apart,
    require_folder,
    require_no_cache,
    require_place,
    writing,
)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """What tells a cache from other folders."""
    (tmp_path / "kin.zarr" / "ledger").mkdir(parents=True)
    (tmp_path / "kin.zarr" / "ledger" / "seal.json").write_text("{}")
    return tmp_path / "kin.zarr"


def refused(path: Path | str, option: str = "--output") -> str:
    with pytest.raises(CometError) as caught:
        require_place(Path(path), option)
    assert caught.value.exit_code == 2 and str(caught.value).startswith(f"{option} ")
    return str(caught.value)


def test_nothing_is_left_behind_by_the_check(tmp_path: Path) -> None:
    require_place(tmp_path / "new" / "deeper" / "student", "--output")
    assert list(tmp_path.iterdir()) == []


def test_a_place_in_a_cache_is_refused_also_by_a_link(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(cache)
    for path in (cache / "student", cache / "new" / "student", tmp_path / "link" / "s", cache / "x" / ".." / "s"):
        assert f"lies in the cache {cache}, which holds nothing but its own files" in refused(path)
    require_place(cache.parent / "kin-student", "--output")
    assert enclosing_cache(cache / "train") == enclosing_cache(cache) == cache.resolve()
    assert enclosing_cache(tmp_path) is None


def test_a_relative_path_is_taken_from_the_working_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cache)
    assert "lies in the cache" in refused("student")


@pytest.mark.parametrize("path", [".", "..", "/", "", " "])
def test_a_path_without_a_name_is_refused(path: str) -> None:
    assert "expected a path that ends in a name" in refused(path)


@pytest.mark.parametrize("name", ["a" * (LONGEST_NAME + 1), "é" * 101, "a\0b"])
def test_names_that_no_disk_takes_are_refused(name: str, tmp_path: Path) -> None:
    assert f"expected a name of at most {LONGEST_NAME} bytes" in refused(tmp_path / name)
    require_place(tmp_path / ("a" * LONGEST_NAME), "--output")


def test_a_file_where_a_folder_is_needed_and_a_circle_of_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "cannot be created (Not a directory)" in refused(tmp_path / "file" / "student")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert "cannot be created (" in refused(tmp_path / "circle" / "student")


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs a file system that nobody can write to")
def test_a_disk_that_cannot_be_written_is_found_at_once() -> None:
    assert "cannot be created (" in refused("/proc/student")


def test_a_folder_in_the_other_is_refused_either_way_round(cache: Path, tmp_path: Path) -> None:
    require_apart(cache, cache, "DST")
    require_apart(cache, tmp_path / "copy.zarr", "DST")
    (tmp_path / "link").symlink_to(cache)
    for inner in (cache / "copy.zarr", tmp_path / "link" / "copy.zarr"):
        with pytest.raises(CometError, match=f"DST .*: lies in {cache}; give a folder beside it"):
            require_apart(cache, inner, "DST")
    with pytest.raises(CometError, match=f"DST .*: contains {cache}; give a folder beside it"):
        require_apart(cache, tmp_path, "DST")


def test_a_folder_that_is_there_is_what_must_be_writable(tmp_path: Path) -> None:
    """As the root of a disk is, in a folder that only the system writes."""
    (tmp_path / "mount").mkdir()
    require_folder(tmp_path / "mount", "DST")
    if Path("/dev/shm").is_dir():
        require_folder(Path("/dev/shm"), "DST")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CometError, match=r"^DST .*/file: is a file; expected a folder"):
        require_folder(tmp_path / "file", "DST")
    with pytest.raises(CometError, match=r"^DST .*/mount: is .*/mount itself; give another folder"):
        require_folder(tmp_path / "mount", "DST", tmp_path / "other", tmp_path / "mount")


def test_a_cache_is_no_place_for_files_of_others(cache: Path) -> None:
    with pytest.raises(CometError, match=rf"^--local-cache {cache}: is the cache {cache}, which holds nothing but"):
        require_no_cache(cache, "--local-cache")
    require_no_cache(cache.parent / "local", "--local-cache")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0"),
        Exception("No space left on device (os error 28)"),  # of tokenizers and safetensors
    ],
)
def test_errors_of_the_disk_have_one_line_whatever_their_type(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(CometError) as caught, writing(tmp_path, "nothing is lost"):
        raise error
    assert str(caught.value) == f"{tmp_path}: cannot be written (No space left on device); nothing is lost"


def test_other_errors_pass(tmp_path: Path) -> None:
    for error in (ValueError("a fault of ours"), CometError("said already")):
        with pytest.raises(type(error), match=str(error)), writing(tmp_path, "nothing is lost"):
            raise error
