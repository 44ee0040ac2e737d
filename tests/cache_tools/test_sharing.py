"""`--push-to`: a folder that is a sound cache at every moment of the build."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builds import digests

from cache_tools import build_cache, open_cache
from cache_tools.errors import CometError
from cache_tools.settings import BuildSettings
from cache_tools.sharing.card import CARD
from cache_tools.store.records import write_durably


@pytest.fixture
def settings(sample_teacher: Path, sample_text: Path, tmp_path: Path) -> BuildSettings:
    return BuildSettings(
        out=tmp_path / "here" / "kin.zarr",
        language="kin",
        teacher=str(sample_teacher),
        text=(str(sample_text),),
        seq_len=64,
        rows_per_shard=16,
        keep="topk",
        top_k=8,
        device="cpu",
    )


def without_locks(folder: Path) -> dict[str, str]:
    """All files but locks and the card."""
    return {path: digest for path, digest in digests(folder).items() if not path.endswith(("lock", CARD))}


@pytest.mark.parametrize("url", ["{}", "file://{}"])
def test_what_is_pushed_while_building_is_the_cache(settings: BuildSettings, tmp_path: Path, url: str) -> None:
    there = tmp_path / "there" / "kin.zarr"
    cache = build_cache(settings, push_to=url.format(there))
    assert without_locks(there) == without_locks(settings.out)
    assert open_cache(there).cache_id == cache.cache_id
    assert f"| cache id | `{cache.cache_id}` |" in (there / CARD).read_text()


def test_every_shard_is_pushed_as_soon_as_it_is_committed(settings: BuildSettings, tmp_path: Path) -> None:
    there = tmp_path / "there"
    with pytest.raises(CometError, match="stopped with"):
        build_cache(settings, max_hours=1e-9, push_to=str(there))
    here, copy = open_cache(settings.out), open_cache(there)
    done = [p for p in (("validation", 0), ("train", 0)) if here.record(*p) is not None]
    assert len(done) == 1
    for name, array in copy.read_shard(*done[0]).items():
        np.testing.assert_array_equal(array, here.read_shard(*done[0])[name])
    build_cache(settings, push_to=str(there))
    assert without_locks(there) == without_locks(settings.out)


def test_shards_committed_before_are_pushed_too(settings: BuildSettings, tmp_path: Path) -> None:
    build_cache(settings)
    build_cache(settings, push_to=str(tmp_path / "there"))
    assert without_locks(tmp_path / "there") == without_locks(settings.out)


def test_a_half_pushed_shard_is_pushed_again(settings: BuildSettings, tmp_path: Path) -> None:
    there = tmp_path / "there"
    build_cache(settings, push_to=str(there))
    (there / "ledger/train-00000.json").unlink()
    (there / "train/topk_id/c/0/0/0").write_bytes(b"half")
    build_cache(settings, push_to=str(there))
    assert without_locks(there) == without_locks(settings.out)


def test_a_shard_that_is_there_already_stays(settings: BuildSettings, tmp_path: Path) -> None:
    there = tmp_path / "there"
    build_cache(replace(settings, batch_size=2, out=there))
    before = {path: (there / path).stat().st_mtime_ns for path in without_locks(there) if (there / path).is_file()}
    build_cache(replace(settings, batch_size=2), push_to=str(there))
    assert before == {path: (there / path).stat().st_mtime_ns for path in before}


def test_another_cache_is_never_touched(settings: BuildSettings, tmp_path: Path) -> None:
    there = tmp_path / "there"
    build_cache(replace(settings, top_k=4, out=there))
    before = digests(there)
    said = r"there: exists and is another cache than the one asked for \(--top-k: asked 8, the cache has 4\); choose "
    with pytest.raises(CometError, match=said + "another --push-to, or give the options it was begun with"):
        build_cache(settings, push_to=str(there))
    assert digests(there) == before


def test_foreign_files_are_never_overwritten(settings: BuildSettings, tmp_path: Path) -> None:
    there = tmp_path / "there"
    write_durably(there / "zarr.json", b"mine")
    with pytest.raises(
        CometError, match=r"there: holds another cache; choose another place \(.*there/zarr.json: not a"
    ):
        build_cache(settings, push_to=str(there))
    assert (there / "zarr.json").read_bytes() == b"mine"


def test_a_damaged_file_is_not_pushed(settings: BuildSettings, tmp_path: Path) -> None:
    build_cache(settings)
    shutil.copyfile(settings.out / "train/topk_id/c/1/0/0", settings.out / "train/topk_id/c/0/0/0")
    said = (
        rf"--push-to {settings.out}/train/topk_id/c/0/0/0: more than the .* damaged; {settings.out} keeps what is built"
    )
    with pytest.raises(CometError, match=said):
        build_cache(settings, push_to=str(tmp_path / "there"))
    assert not (tmp_path / "there/ledger/train-00000.json").exists()


def test_a_folder_that_refuses_ends_the_build_and_leaves_the_cache(settings: BuildSettings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CometError, match=r"cannot be written .* what is copied from is safe"):
        build_cache(settings, push_to=str(tmp_path / "file" / "kin.zarr"))
    build_cache(settings)
