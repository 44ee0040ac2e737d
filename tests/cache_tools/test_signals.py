"""The table of signals is whole, and whoever reads a cache by it refuses what it does not declare."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.small_caches import make_cache, random_shard, small_recipe
from numpy.typing import NDArray

from cache_tools import open_cache
from cache_tools.errors import CometError
from cache_tools.settings import Part
from cache_tools.sharing.parts import part_extent
from cache_tools.signals import ARRAYS, LOGITS, SIGNALS, TOKENS, declared_arrays, family_of, kept_signals
from cache_tools.store.bounds import check_ranges, check_signals
from cache_tools.store.layout import group_arrays
from cache_tools.store.ledger import Extent
from cache_tools.teacher.signals import teacher_signals
from cache_tools.verify.values import shard_errors
from comet.train.dataset import collate
from comet.train.signals import teacher_targets

RECIPES = {keep: small_recipe(keep=keep) for keep in LOGITS}
Arrays = dict[str, NDArray]


def test_no_name_is_declared_twice() -> None:
    names = [*TOKENS, *(name for signal in SIGNALS for name in signal.arrays)]
    assert len(set(names)) == len(names) == len(ARRAYS)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_cache_has_what_the_table_declares(recipe: object) -> None:
    specs, declared = group_arrays(recipe, "train"), declared_arrays(recipe)
    assert list(specs) == list(declared)
    for name, spec in specs.items():
        assert (spec.dtype, spec.dimensions[1:]) == (np.dtype(declared[name].dtype), declared[name].axes)
    assert list(teacher_signals(recipe)) == [signal.name for signal in kept_signals(recipe)]
    for trimmed in (False, True):
        assert set(teacher_targets(recipe).arrays(trimmed)) <= LOGITS[recipe.keep].arrays.keys()


READERS: dict[str, Callable[[Arrays], object]] = {
    "ranges": lambda arrays: check_ranges(arrays, RECIPES["topk"], "here"),
    "signals": lambda arrays: check_signals(arrays, "here"),
    "values": lambda arrays: shard_errors(arrays, RECIPES["topk"], "train", 0, np.arange(50, dtype=np.int32)),
    "collate": lambda arrays: collate(arrays, RECIPES["topk"]),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_an_undeclared_array_is_refused(read: Callable[[Arrays], object]) -> None:
    arrays = random_shard(RECIPES["topk"], "train", 0)
    with pytest.raises(CometError, match=r"feature_norm: no array of (a|this) cache; expected (one|some) of "):
        read(arrays | {"feature_norm": np.zeros((4, 3), dtype=np.float32)})


def test_an_array_of_another_kind_of_cache_is_refused() -> None:
    """`sample_id` is declared, but caches of the best tokens do not have it."""
    arrays = random_shard(RECIPES["topk"], "train", 0) | {"sample_id": np.zeros((4, 3, 2, 4), dtype=np.int32)}
    for read in (READERS["ranges"], READERS["values"]):
        with pytest.raises(CometError, match="sample_id: no array of this cache"):
            read(arrays)


def test_a_part_has_no_undeclared_array(tmp_path: Path) -> None:
    make_cache(tmp_path / "kin", RECIPES["topk"])
    cache = open_cache(tmp_path / "kin")
    extent = Extent(cache.extent.recipe_id, (*cache.extent.arrays, "feature_norm"), cache.extent.shards)
    with pytest.raises(CometError, match="feature_norm: no array of a cache"):
        part_extent(cache.recipe, cache.seal, extent, [], Part(signals="logits"), "here")


def test_families() -> None:
    assert {name: family_of(name) for name in ("row_key", "entropy", "topk_id", "attention_gap")} == {
        "row_key": "tokens",
        "entropy": "logits",
        "topk_id": "logits",
        "attention_gap": "attention",
    }
