"""Shards that were dropped, or are missing in a copy, are built again from the text to the same bytes."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.builds import digests
from helpers.settings import build_settings

from cache_tools import build_cache, open_cache
from cache_tools.errors import CometError
from cache_tools.settings import BuildSettings
from cache_tools.signals import TOKEN_ARRAYS
from cache_tools.store.copy import merge
from cache_tools.store.writer import drop_shard


@pytest.fixture(scope="module")
def settings(sample_teacher: Path, sample_text: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildSettings:
    return build_settings(tmp_path_factory.mktemp("whole") / "kin.zarr", sample_teacher, sample_text, rows_per_shard=8)


@pytest.fixture(scope="module")
def whole(settings: BuildSettings) -> dict[str, str]:
    build_cache(settings)
    return digests(settings.out)


@pytest.fixture
def copy(settings: BuildSettings, whole: dict[str, str], tmp_path: Path) -> BuildSettings:
    """The same build, complete, in a folder to damage."""
    shutil.copytree(settings.out, tmp_path / "kin.zarr")
    return replace(settings, out=tmp_path / "kin.zarr")


@pytest.mark.parametrize("damaged", ["tokens", "signals"])
def test_a_dropped_shard_is_built_again(copy: BuildSettings, whole: dict[str, str], damaged: str) -> None:
    """Its tokens stay where they are sound, and else come from the text."""
    cache = open_cache(copy.out)
    name = "target_id" if damaged == "tokens" else "sample_id"
    (copy.out / cache.specs["train"][name].chunk_path(1)).write_bytes(b"damaged")
    drop_shard(cache, "train", 1)
    left = [name for name, spec in cache.specs["train"].items() if (copy.out / spec.chunk_path(1)).exists()]
    assert left == ([] if damaged == "tokens" else list(TOKEN_ARRAYS))
    assert open_cache(copy.out).missing("train") == [1]
    build_cache(copy)
    assert digests(copy.out) == whole


def test_a_half_copied_cache_is_finished_elsewhere(copy: BuildSettings, whole: dict[str, str], tmp_path: Path) -> None:
    """A copy of what was committed has no tokens of the other shards."""
    half = open_cache(copy.out)
    for shard in half.extent.indices("train")[1:]:
        drop_shard(half, "train", shard)
    there = tmp_path / "elsewhere" / "kin.zarr"
    merge([open_cache(copy.out)], there)
    assert not (there / "train" / "length" / "c" / "1").exists()
    build_cache(replace(copy, out=there))
    assert {path: d for path, d in digests(there).items() if not path.endswith("lock")} == {
        path: d for path, d in whole.items() if not path.endswith("lock")
    }
    assert [path.name for path in there.parent.iterdir()] == ["kin.zarr"]


def test_damaged_tokens_without_a_record_are_an_error(copy: BuildSettings) -> None:
    cache = open_cache(copy.out)
    drop_shard(cache, "train", 1)
    shutil.copyfile(copy.out / "train/row_key/c/0", copy.out / "train/row_key/c/1")
    with pytest.raises(CometError, match=r"the tokens of shard train 1 are not the sealed ones.*repair"):
        build_cache(copy)
