"""Caches of format 2 that were written once (golden/README.md): every reader of every later version finds in them
exactly what was put there."""

import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from cache_tools import Cache, open_cache
from cache_tools.store.start import read_start, start_arrays
from cache_tools.verify.verify import verify

GROUPS = ("train", "validation", "vocabulary", "start")
GOLDEN = Path(__file__).parent / "golden"
RECIPE_IDS = {
    "threshold": "09d1d9cfabc694dfe04417c7a0a36ffc8b7c9c629bdb3283865ec71b7e6703fa",
    "topk": "b38e2ce46a6c2f3000a0e44eb55c9279b0fe52ca84b6b1c9af481e16112afc73",
}
CACHE_IDS = {
    "threshold": "cf3c31c18f13b8de28aca46015e68527e401a4483a316f3297675cca2e2c81e9",
    "topk": "79df2e208426e3f7f611cab7602f813eb1415262f49665e2f40e01de5b5bf0b6",
}


@dataclass(frozen=True)
class Golden:
    """A cache as it was written, and its arrays by path."""

    keep: str
    root: Path
    expected: dict[str, NDArray]


@pytest.fixture(params=["threshold", "topk"])
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Golden:
    with tarfile.open(GOLDEN / f"{request.param}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    with np.load(GOLDEN / f"{request.param}.npz", allow_pickle=False) as arrays:
        return Golden(request.param, tmp_path / f"{request.param}.zarr", dict(arrays))


def assert_same(found: NDArray, expected: NDArray) -> None:
    """The same to the bit, NaN and −0 too."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert np.ascontiguousarray(found).tobytes() == expected.tobytes()


def arrays_read(cache: Cache) -> dict[str, NDArray]:
    """What our reader gives, by path, the shards of a group one after another."""
    found = {
        f"{group}/{name}": np.concatenate(
            [cache.read_shard(group, shard)[name] for shard in cache.extent.indices(group)]
        )
        for group in GROUPS[:2]
        for name in cache.extent.arrays
    }
    found |= {f"vocabulary/{name}": array for name, array in vars(cache.vocabulary).items()}
    return found | {f"start/{name}": read_start(cache, name) for name in start_arrays(cache.recipe)}


def test_the_reader_finds_the_very_values(golden: Golden) -> None:
    found = arrays_read(open_cache(golden.root))
    assert found.keys() == golden.expected.keys()
    for path, expected in golden.expected.items():
        assert_same(found[path], expected)


def test_plain_zarr_finds_them(golden: Golden) -> None:
    hierarchy: Any = zarr.open_group(golden.root, mode="r")
    paths = {f"{group}/{name}" for group in GROUPS for name in hierarchy[group].array_keys()}
    assert paths == golden.expected.keys()
    for path, expected in golden.expected.items():
        assert_same(hierarchy[path][:], expected)


def test_tensorstore_finds_them(golden: Golden) -> None:
    tensorstore = pytest.importorskip("tensorstore", reason="tensorstore, another reader of Zarr, is not installed")
    for path, expected in golden.expected.items():
        store = {"driver": "file", "path": str(golden.root / path)}
        assert_same(tensorstore.open({"driver": "zarr3", "kvstore": store}).result()[...].read().result(), expected)


def test_its_names_stay(golden: Golden) -> None:
    cache = open_cache(golden.root)
    assert (cache.recipe.recipe_id, cache.cache_id) == (RECIPE_IDS[golden.keep], CACHE_IDS[golden.keep])


def test_it_is_sound(golden: Golden) -> None:
    assert not verify(golden.root, deep=True).damage


def test_some_of_the_values_written_out(golden: Golden) -> None:
    expected = golden.expected
    assert expected["validation/input_ids"][1].tolist() == [2, 38, 43, 4, 48, 43, 5, 3] + 8 * [0]
    assert expected["validation/target_id"].tolist() == [[51, 50], [41, -1]]
    of_first_query = [expected[f"validation/attention_{name}"][:, 0, 0].tolist() for name in ("gap", "weight")]
    assert of_first_query == [
        [[2, 2, 1, 3, 0, 0, 1, 16], [0, 0, 0, 0, 0, 0, 0, 0]],
        [[0, 0, 0, 92, 100, 103, 0, 0], [48, 77, 165, 75, 51, 78, 91, 82]],
    ]
    last = expected["start/attention"][-1]
    assert last[0, 0, :3].tolist() == [1695 / 4096, -1155 / 4096, -1829 / 8192]
    assert expected["start/head_order"][-1].tolist() == [1, 0]
    assert expected["start/neuron_order"][-1, :6].tolist() == [17, 15, 19, 21, 30, 4]
    if golden.keep == "topk":
        assert expected["validation/topk_id"][0, 0].tolist() == [11, 7, 56, 53, 50, 35]
        assert expected["validation/tail_logmass"][0, 0].tolist() == [-772 / 1024, 1579 / 1024]
    else:
        assert expected["validation/sample_id"][0, 0].tolist() == [[11, 14, 25, 37, 51, 56], [11, 16, 25, 37, 50, 58]]
        assert expected["validation/entropy"][0, 0].tolist() == [3388 / 1024, 3999 / 1024]
