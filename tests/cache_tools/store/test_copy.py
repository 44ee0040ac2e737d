"""Parts and merged caches: complete in themselves, and never of other things than they say."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.small_caches import NUMERICS, Shards, commit, flip_byte, make_cache, prepare_cache, small_recipe

from cache_tools import Cache, open_cache
from cache_tools.errors import CometError
from cache_tools.signals import family_of
from cache_tools.store.copy import cut, merge, ranges
from cache_tools.store.ledger import Extent, whole_extent

RECIPE = small_recipe()
LABORATORIES: tuple[list[tuple[str, int]], ...] = ([("train", 0), ("train", 1)], [("train", 2), ("validation", 0)])


def extent(**shards: tuple[tuple[int, int], ...]) -> Extent:
    return replace(whole_extent(RECIPE), shards={"train": (), "validation": ()} | shards)


@pytest.fixture
def whole(tmp_path: Path) -> Cache:
    make_cache(tmp_path / "whole", RECIPE)
    return open_cache(tmp_path / "whole")


def half(root: Path, laboratory: int, seed: int = 0, numerics: dict[str, str] = NUMERICS) -> tuple[Cache, Shards]:
    """A cache in which one laboratory has built its half of the shards."""
    shards = prepare_cache(root, RECIPE, seed)
    for place in LABORATORIES[laboratory]:
        commit(root, RECIPE, place, shards[place], numerics)
    return open_cache(root), shards


def names_of(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()} - {"ledger/lock"}


def test_a_part_is_complete_and_says_what_it_is_of(whole: Cache, tmp_path: Path) -> None:
    part = cut(whole, tmp_path / "part", extent(train=((1, 3),), validation=((0, 1),)))
    part.require_complete()
    assert part.recipe == whole.recipe
    assert part.cache_id != whole.cache_id
    for place in (("train", 1), ("train", 2), ("validation", 0)):
        for name, array in part.read_shard(*place).items():
            np.testing.assert_array_equal(array, whole.read_shard(*place)[name])
    missing = names_of(whole.root) - names_of(part.root)
    assert missing == {"ledger/train-00000.json"} | {spec.chunk_path(0) for spec in whole.specs["train"].values()}


def test_a_part_of_the_arrays(whole: Cache, tmp_path: Path) -> None:
    names = tuple(name for name in whole.extent.arrays if family_of(name) != "attention")
    part = cut(whole, tmp_path / "part", replace(whole.extent, arrays=names))
    part.require_complete()
    assert list(part.read_shard("train", 0)) == list(names)
    assert not (part.root / "train/attention_gap/c").exists()
    again = cut(part, tmp_path / "again", replace(part.extent, shards={"train": ((0, 1),), "validation": ()}))
    assert list(again.read_shard("train", 0)) == list(names)


@pytest.mark.parametrize(
    ("wanted", "lacking"), [(extent(train=((0, 3),)), "train [2]"), (extent(validation=((0, 1),)), "validation [0]")]
)
def test_a_part_of_what_is_not_there(tmp_path: Path, wanted: Extent, lacking: str) -> None:
    cache, _ = half(tmp_path / "half", 0)
    with pytest.raises(CometError, match=re.escape(f"{cache.root}: does not hold shards {lacking}")):
        cut(cache, tmp_path / "part", wanted)
    assert not (tmp_path / "part").exists()


def test_two_halves_make_the_whole(whole: Cache, tmp_path: Path) -> None:
    halves = [half(tmp_path / str(laboratory), laboratory)[0] for laboratory in (0, 1)]
    merged = merge(halves, tmp_path / "merged")
    assert merged.cache_id == whole.cache_id
    assert names_of(merged.root) == names_of(whole.root)


def test_of_two_versions_of_a_shard_the_first_is_kept(tmp_path: Path) -> None:
    one, _ = half(tmp_path / "one", 0)
    other, _ = half(tmp_path / "other", 0, numerics={"device": "another"})
    for first, second in ((one, other), (other, one)):
        merged = merge([first, second], tmp_path / f"{first.root.name} first")
        assert merged.record("train", 0) == first.record("train", 0)
        assert merged.missing("train") == [2]


def test_other_recipes_are_not_merged_and_what_differs_is_named(whole: Cache, tmp_path: Path) -> None:
    make_cache(tmp_path / "other", small_recipe(seed=7))
    with pytest.raises(CometError, match=r"other: another recipe than .*whole \(seed: 0 against 7\)") as caught:
        merge([whole, open_cache(tmp_path / "other")], tmp_path / "merged")
    assert caught.value.exit_code == 2


def test_other_tokens_or_arrays_are_not_merged(whole: Cache, tmp_path: Path) -> None:
    cache, _ = half(tmp_path / "other tokens", 0, seed=1)
    fewer = cut(whole, tmp_path / "fewer", replace(whole.extent, arrays=("length",)))
    digests = [c.seal.token_digests["train"][0] for c in (whole, cache)]
    tokens = rf"\(tokens of shard train 0 sha256: {digests[0]} against {digests[1]}; tokens of shard train 1 sha256: "
    arrays = rf"\(arrays: {', '.join(whole.extent.arrays)} against length\)"
    for other, unlike in ((cache, tokens), (fewer, arrays)):
        with pytest.raises(CometError, match=rf"holds other tokens or arrays than .*whole {unlike}"):
            merge([whole, other], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("file", ["train/topk_id/c/1/0/0", "ledger/train-00001.json", "vocabulary/id/c/0"])
def test_damage_is_not_copied(whole: Cache, tmp_path: Path, file: str) -> None:
    flip_byte(whole.root / file, 20)
    with pytest.raises(CometError, match=f"{whole.root / file}: "):
        merge([open_cache(whole.root)], tmp_path / "merged")
    assert not (tmp_path / "merged" / "ledger/train-00001.json").exists()


def test_another_part_in_the_folder_stays(whole: Cache, tmp_path: Path) -> None:
    cut(whole, tmp_path / "part", extent(train=((0, 1),)))
    before = names_of(tmp_path / "part")
    with pytest.raises(CometError, match=r"part: holds another part of this cache; choose another folder") as caught:
        cut(whole, tmp_path / "part", extent(train=((0, 2),)))
    assert caught.value.exit_code == 2
    assert str(caught.value).endswith("(shards of train: [(0, 1)] against [(0, 2)])")
    assert names_of(tmp_path / "part") == before
    with pytest.raises(CometError, match=r"\(arrays: input_ids, .* against length\)$"):
        cut(whole, tmp_path / "part", replace(extent(train=((0, 1),)), arrays=("length",)))


@pytest.mark.parametrize(
    ("change", "unlike"),
    [
        ("recipe", r"seed: 7 against 0; top_k: 3 against 4"),
        ("tokens", r"tokens of shard train 0 sha256: \w{64} against \w{64}; .*tokens of shard validation 0 .*"),
        ("provenance", r"zarr\.json sha256: \w{64} against \w{64}"),
    ],
)
def test_another_cache_in_the_folder_stays_and_is_named(whole: Cache, tmp_path: Path, change: str, unlike: str) -> None:
    other = small_recipe(seed=7, top_k=3) if change == "recipe" else RECIPE
    attributes: dict[str, object] = {"provenance": {"language": "kin"}} if change == "provenance" else {}
    prepare_cache(tmp_path / "there", other, seed=int(change == "tokens"), attributes=attributes)
    before = names_of(tmp_path / "there")
    with pytest.raises(CometError, match=rf"there: holds another cache; choose another folder \({unlike}\)$"):
        merge([whole], tmp_path / "there")
    assert names_of(tmp_path / "there") == before


def test_ranges_of_shard_numbers() -> None:
    assert ranges({5, 0, 1, 2, 7, 6}) == ((0, 3), (5, 8))
    assert ranges(set()) == ()
