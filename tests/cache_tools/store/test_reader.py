"""Whole caches on disk: what was written comes back, and nothing that was changed does."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers.commands import run
from helpers.small_caches import (
    change_json,
    commit,
    exchange,
    flip_byte,
    make_cache,
    prepare_cache,
    random_vocabulary,
    rewrite,
    small_recipe,
)
from numpy.typing import NDArray

import cache_tools
from cache_tools import open_cache
from cache_tools.errors import CometError
from cache_tools.signals import TOKEN_ARRAYS
from cache_tools.store.layout import group_arrays
from cache_tools.store.ledger import EXTENT

RECIPE = small_recipe()


def test_every_array_comes_back(tmp_path: Path) -> None:
    shards = make_cache(tmp_path / "kin.zarr")
    cache = open_cache(tmp_path / "kin.zarr")
    assert cache.recipe == RECIPE
    for place, expected in shards.items():
        found = cache.read_shard(*place)
        assert list(found) == list(group_arrays(RECIPE, "train"))
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, name)
            assert found[name].dtype == array.dtype
        tokens, _ = cache.read_tokens(*place)
        assert {name: array.tolist() for name, array in tokens.items()} == {n: expected[n].tolist() for n in tokens}
    for name, array in random_vocabulary(RECIPE).items():
        np.testing.assert_array_equal(getattr(cache.vocabulary, name), array)
    assert sorted(file.name for file in cache.tokenizer_folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    record = cache.record("train", 0)
    assert record is not None
    assert record.numerics == {"device": "cpu", "dtype": "float32"}


def test_some_arrays_come_back_alone(built: Path) -> None:
    found = open_cache(built).read_shard("train", 2, ("length", "topk_id"))
    assert {name: array.shape for name, array in found.items()} == {"length": (2,), "topk_id": (2, 3, 4)}


@pytest.mark.parametrize(("keep", "layers"), [("threshold", (1,)), ("topk", ())])
def test_caches_with_other_arrays_come_back(tmp_path: Path, keep: str, layers: tuple[int, ...]) -> None:
    recipe = small_recipe(keep=keep, attention_layers=layers, validation_rows=0)
    shards = make_cache(tmp_path / "kin.zarr", recipe)
    cache = open_cache(tmp_path / "kin.zarr")
    cache.require_complete()
    for place, expected in shards.items():
        for name, array in cache.read_shard(*place).items():
            np.testing.assert_array_equal(array, expected[name], name)


def test_plain_zarr_opens_it_and_finds_the_same_numbers(built: Path) -> None:
    hierarchy, cache = zarr.open_group(built, mode="r"), open_cache(built)
    assert hierarchy.attrs["comet"]["recipe_id"] == RECIPE.recipe_id  # type: ignore[index, call-overload]
    for group in ("train", "validation"):
        shards = [cache.read_shard(group, shard) for shard in range(RECIPE.shards(group))]
        for name in group_arrays(RECIPE, group):
            np.testing.assert_array_equal(
                np.asarray(hierarchy[f"{group}/{name}"]), np.concatenate([shard[name] for shard in shards]), name
            )
    for name in ("id", "count", "embedding", "head_bias"):
        np.testing.assert_array_equal(np.asarray(hierarchy[f"vocabulary/{name}"]), getattr(cache.vocabulary, name))


def test_missing_shards_are_reported(cache: Path) -> None:
    for name in ("train-00001", "validation-00000"):
        (cache / "ledger" / f"{name}.json").unlink()
    found = open_cache(cache)
    assert (found.missing("train"), found.missing("validation")) == ([1], [0])
    message = f"{cache}: the cache is incomplete: 2 of 4 shards are missing. Run the same `comet-cache build` again"
    with pytest.raises(CometError, match=f"^{message}"):
        found.require_complete()
    with pytest.raises(CometError, match=f"^{message}"):
        assert found.cache_id
    with pytest.raises(CometError, match=rf"^{cache}: shard train 1 is not committed; run `comet-cache build` again$"):
        found.read_shard("train", 1)
    assert len(found.read_shard("train", 0)["length"]) == 4


def test_what_is_there_of_an_incomplete_cache_can_be_taken(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (cache / "ledger/train-00001.json").unlink()
    with pytest.raises(CometError, match=r" 1 of 4 shards are missing\. Run the same ") as refused:
        open_cache(cache).require_complete()
    program, *call = shlex.split(str(refused.value).partition("or take those that are there: ")[2])
    assert program == "comet-cache"
    assert run(*call).exit_code == 0
    part = open_cache("part.zarr")
    part.require_complete()
    assert list(part.extent.indices("train")) == [0, 2]
    (cache / "ledger/validation-00000.json").unlink()
    with pytest.raises(CometError, match=r"again to finish it$"):
        open_cache(cache).require_complete()


@pytest.mark.parametrize("shard", [-1, 3, "0", None, 0.5])
def test_a_shard_that_no_cache_of_this_recipe_has(built: Path, shard: object) -> None:
    found = open_cache(built)
    for method in (found.record, found.read_shard, found.read_tokens):
        with pytest.raises(CometError, match=r": no shard train \S+; expected 0 to 2$"):
            method("train", shard)  # type: ignore[arg-type]
        with pytest.raises(CometError, match=r": no group test; expected train or validation$"):
            method("test", 0)


@pytest.mark.parametrize("name", group_arrays(RECIPE, "train"))
def test_damage_to_the_file_of_any_array_is_noticed(cache: Path, name: str) -> None:
    """A flipped byte, two sound files exchanged, and a file that is gone."""
    file, other = (cache / group_arrays(RECIPE, "train")[name].chunk_path(shard) for shard in (0, 1))
    flip_byte(file)
    with pytest.raises(CometError, match=rf"^{file}: \d+ bytes that do not match the ledger"):
        open_cache(cache).read_shard("train", 0)
    flip_byte(file)
    exchange(file, other)
    for shard in (0, 1):
        with pytest.raises(CometError, match="the file is damaged or belongs to another shard"):
            open_cache(cache).read_shard("train", shard)
    file.unlink()
    with pytest.raises(CometError, match=rf"^{file}: cannot be read .*; the cache is incomplete or damaged$"):
        open_cache(cache).read_shard("train", 0)


def test_two_shards_exchanged_with_their_records_are_noticed(cache: Path) -> None:
    for spec in group_arrays(RECIPE, "train").values():
        exchange(*(cache / spec.chunk_path(shard) for shard in (0, 1)))
    exchange(cache / "ledger/train-00000.json", cache / "ledger/train-00001.json")
    with pytest.raises(CometError, match="shard: expected 0, found '1'; the record belongs to another cache or shard"):
        open_cache(cache).require_complete()


def test_tokens_other_than_the_sealed_ones_are_noticed(cache: Path) -> None:
    for name in TOKEN_ARRAYS:
        spec = group_arrays(RECIPE, "train")[name]
        exchange(*(cache / spec.chunk_path(shard) for shard in (0, 1)))
    with pytest.raises(CometError, match=rf"^{cache}: the tokens of shard train 0 are not the sealed ones; "):
        open_cache(cache).read_tokens("train", 0)


def missing_query(gap: NDArray, length: int) -> None:
    gap[0, 1, 0] = 16


def query_too_many(gap: NDArray, length: int) -> None:
    gap[0, 1, -(-length // 4), 0] = 0


def key_after_the_end(gap: NDArray, length: int) -> None:
    gap[0, 0, 0] = [16, 2, 16, 16, 16]


def key_in_the_padding(gap: NDArray, length: int) -> None:
    gap[0, 0, 0, :2] = length - 1, 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing_query, "expected keys of one query in 4 of each row, and of no other"),
        (query_too_many, "expected keys of one query in 4 of each row, and of no other"),
        (key_after_the_end, "expected keys of one query in 4 of each row, and of no other"),
        (key_in_the_padding, "a key lies in the padding"),
    ],
)
def test_attention_at_wrong_places_is_noticed(
    cache: Path, change: Callable[[NDArray, int], None], message: str
) -> None:
    arrays = open_cache(cache).read_shard("train", 0)
    gap, row = arrays["attention_gap"].copy(), int(np.flatnonzero(arrays["length"] <= 12)[0])
    change(gap[row : row + 1], int(arrays["length"][row]))
    rewrite(cache, "attention_gap", gap)
    with pytest.raises(CometError, match=rf"^{cache}: shard train 0: attention_gap: {message}; the cache is damaged$"):
        open_cache(cache).read_shard("train", 0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("input_ids", 50, "input_ids: a value lies outside 0 to 49"),
        ("input_ids", -1, "input_ids: a value lies outside 0 to 49"),
        ("topk_id", -2, "topk_id: a value lies outside -1 to 49"),
        ("target_id", 50, "target_id: a value lies outside -1 to 49"),
        ("length", 0, "length: a value lies outside 1 to 16"),
        ("length", 17, "length: a value lies outside 1 to 16"),
        ("target_position", 16, "target_position: a target lies in the padding"),
        ("attention_gap", 17, "attention_gap: a value lies outside 0 to 16"),
        ("attention_weight", 255, "attention_weight: a value lies outside 0 to 254"),
    ],
)
def test_values_out_of_range_are_noticed_under_sound_checksums(
    cache: Path, name: str, value: int, message: str
) -> None:
    array = open_cache(cache).read_shard("train", 0)[name].copy()
    array.flat[0] = value
    rewrite(cache, name, array)
    with pytest.raises(CometError, match=rf"^{cache}: shard train 0: {message}"):
        open_cache(cache).read_shard("train", 0)


def test_a_part_of_a_cache_is_complete_in_its_extent(cache: Path) -> None:
    whole = open_cache(cache).cache_id
    smaller = {"arrays": ["length"], "shards": {"train": [[1, 3]], "validation": []}}
    change_json(cache / EXTENT, lambda extent: extent.update(smaller), sign=True)
    (cache / "ledger/train-00000.json").unlink()
    part = open_cache(cache)
    part.require_complete()
    assert part.extent.indices("train") == [1, 2]
    assert list(part.read_shard("train", 2)) == ["length"]
    assert part.recipe.recipe_id == RECIPE.recipe_id
    assert part.cache_id != whole


def test_the_cache_id_follows_the_content_and_nothing_else(tmp_path: Path) -> None:
    shards = make_cache(tmp_path / "one")
    first = open_cache(tmp_path / "one").cache_id
    for place in reversed(prepare_cache(tmp_path / "elsewhere", RECIPE)):  # committed in another order
        commit(tmp_path / "elsewhere", RECIPE, place, shards[place])
    assert open_cache(tmp_path / "elsewhere").cache_id == first
    for name in ("topk_id", "attention_weight"):
        changed = {place: dict(arrays) for place, arrays in shards.items()}
        changed["train", 2][name] = changed["train", 2][name][::-1].copy()
        prepare_cache(tmp_path / name, RECIPE)
        for place, arrays in changed.items():
            commit(tmp_path / name, RECIPE, place, arrays)
        assert open_cache(tmp_path / name).cache_id != first
    make_cache(tmp_path / "other tokens", seed=1)
    assert open_cache(tmp_path / "other tokens").cache_id != first
    prepare_cache(tmp_path / "other machine", RECIPE)
    for place, arrays in shards.items():
        commit(tmp_path / "other machine", RECIPE, place, arrays, {"device": "H200"})
    assert open_cache(tmp_path / "other machine").cache_id != first


def test_a_path_without_a_cache(tmp_path: Path) -> None:
    with pytest.raises(CometError, match=rf"^{tmp_path}/kin\.zarr: no such cache") as caught:
        open_cache(tmp_path / "kin.zarr")
    assert caught.value.exit_code == 2
    with pytest.raises(CometError, match=rf"^{tmp_path}: not a cache: it has no zarr\.json"):
        open_cache(str(tmp_path))
    zarr.create_group(tmp_path, attributes={"comet": 1})
    with pytest.raises(CometError, match=rf"^{tmp_path}: a Zarr hierarchy, but not a cache of comet"):
        open_cache(tmp_path)


@pytest.mark.parametrize("name", ["seal.json", "extent.json"])
def test_a_cache_without_its_ledger(cache: Path, name: str) -> None:
    (cache / "ledger" / name).unlink()
    with pytest.raises(CometError, match=rf"^{cache}: the cache was never sealed or its ledger is gone"):
        open_cache(cache)


def test_reading_and_verifying_imports_no_torch_or_transformers(built: Path) -> None:
    """Checked in a fresh interpreter: students are trained and caches inspected where neither is installed."""
    program = """
import sys
import cache_tools
from cache_tools.verify.verify import verify
cache = cache_tools.open_cache(sys.argv[1])
assert verify(sys.argv[1]).damage == []
cache.require_complete()
assert cache.read_shard("train", 0)["topk_id"].shape == (4, 3, 4)
assert cache.vocabulary.id.size and cache.tokenizer_folder.is_dir() and cache.cache_id
print(sorted({"torch", "transformers", "tokenizers", "datasets", "safetensors"} & set(sys.modules)))
"""
    environment = os.environ | {"PYTHONPATH": str(Path(cache_tools.__file__).parents[1])}
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(built)], env=environment, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr, ran.stdout) == (0, "", "[]\n")


def test_the_package_knows_its_public_names() -> None:
    assert set(cache_tools.__all__) == {"Cache", "build_cache", "open_cache"}
    assert callable(cache_tools.build_cache)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        cache_tools.nonsense  # noqa: B018
