"""Rows come back exactly as stored, in an order that can be repeated, and padding never becomes a target."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_tools import Cache
from comet.data import CacheRows, ShardShuffleSampler, collate, shards_of

NAMES = ("input_ids", "length", "target_position", "target_id", "topk_id", "topk_logprob", "tail_logmass", "attention")


def test_rows_in_any_order_are_the_stored_rows(cache: Cache) -> None:
    shards = shards_of([cache], "train")
    assert len(shards) > 2, "the test needs several shards"
    whole = {name: np.concatenate([cache.read_shard("train", s.index)[name] for s in shards]) for name in NAMES}
    rows = CacheRows(shards, NAMES, held=1)
    order = np.random.default_rng(0).permutation(len(rows))[:25].tolist()
    batch = rows.__getitems__(order)
    for name in NAMES:
        np.testing.assert_array_equal(batch[name], whole[name][order])


def test_no_more_shards_are_held_than_allowed(cache: Cache) -> None:
    rows = CacheRows(shards_of([cache], "train"), NAMES, held=2)
    rows.__getitems__(list(range(len(rows))))
    assert len(rows._decoded) == 2


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 50),
    buffer=st.integers(1, 5),
)
def test_an_epoch_holds_every_row_once_and_repeats_exactly(
    sizes: list[int], seed: int, epoch: int, buffer: int
) -> None:
    sampler = ShardShuffleSampler(sizes, seed, buffer)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(sum(sizes))) and len(sampler) == len(order)
    again = ShardShuffleSampler(sizes, seed, buffer)
    again.set_epoch(epoch)
    assert list(again) == order


def test_epochs_and_seeds_differ() -> None:
    orders = set()
    for seed in (0, 1):
        for epoch in (0, 1):
            sampler = ShardShuffleSampler([8, 8, 8], seed)
            sampler.set_epoch(epoch)
            orders.add(tuple(sampler))
    assert len(orders) == 4


def test_a_buffer_touches_few_shards() -> None:
    sizes = [10] * 12
    order = np.array(list(ShardShuffleSampler(sizes, seed=3, buffer_shards=3)))
    for first in range(0, len(order), 30):
        assert len(np.unique(order[first : first + 30] // 10)) == 3


def test_every_target_of_a_batch_is_a_masked_ordinary_token(cache: Cache) -> None:
    rows = CacheRows(shards_of([cache], "train"), NAMES)
    arrays = rows.__getitems__(list(range(20)))
    batch = collate(arrays)
    recipe = cache.recipe
    assert (batch["target_position"] < batch["length"][batch["target_row"]]).all()
    assert not torch.isin(batch["target_id"], torch.tensor(recipe.special_ids)).any()
    assert len(batch["target_id"]) == (arrays["target_id"] >= 0).sum()
    assert torch.isfinite(batch["topk_logprob"]).all()
    assert (batch["topk_id"] >= 0).all()
    seen = batch["input_ids"][batch["target_row"], batch["target_position"]]
    assert 0.6 < (seen == recipe.mask_id).float().mean() < 0.95


def test_collation_cuts_padding_off_and_nothing_else(cache: Cache) -> None:
    rows = CacheRows(shards_of([cache], "train"), NAMES)
    arrays = rows.__getitems__(list(range(len(rows))))
    short = int(np.argmin(arrays["length"]))
    assert arrays["length"][short] < cache.recipe.seq_len, "the test needs a row that is not full"
    batch = collate({name: array[short : short + 1] for name, array in arrays.items()})
    assert batch["input_ids"].shape[1] == arrays["length"][short]
    np.testing.assert_array_equal(batch["input_ids"][0], arrays["input_ids"][short, : arrays["length"][short]])


@pytest.mark.parametrize("group", ["train", "validation"])
def test_two_caches_make_one_data_set(cache: Cache, group: str) -> None:
    once, twice = CacheRows(shards_of([cache], group), NAMES), CacheRows(shards_of([cache, cache], group), NAMES)
    assert len(twice) == 2 * len(once)
    np.testing.assert_array_equal(twice[len(once)]["input_ids"], once[0]["input_ids"])
