"""The order of an epoch is a pure function of (seed, epoch), mixes caches as the exponent says, and skips nothing."""

from collections import Counter
from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from cache_tools.errors import CometError
from comet.train.sampler import CYCLE, Buffer, ShardShuffleSampler, language_rows

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=12)
SEEDS = st.integers(0, 2**31)
CACHES = st.lists(SIZES, min_size=1, max_size=5)


def sampler_of(caches: Sequence[Sequence[int]], seed: int = 0, epoch: int = 0, **options: Any) -> ShardShuffleSampler:
    """Over several caches, given the rows of the shards of each."""
    sizes = [size for cache in caches for size in cache]
    numbers = [number for number, cache in enumerate(caches) for _ in cache]
    sampler = ShardShuffleSampler(sizes, seed, caches=numbers, **options)
    sampler.set_epoch(epoch)
    return sampler


def buffers_of(sampler: ShardShuffleSampler) -> list[tuple[Buffer, list[int]]]:
    """The shards and rows of each buffer of an epoch, as the sampler announces them."""
    buffers: list[tuple[Buffer, list[int]]] = []

    def note(upcoming: Sequence[Buffer]) -> None:
        if upcoming:
            buffers.append((upcoming[0], []))

    sampler.expect = note
    for row in sampler:
        buffers[-1][1].append(row)
    return buffers


def plain_order(sizes: list[int], seed: int, epoch: int, buffer: int) -> list[int]:
    """One cache, every row once, as plainly as it can be said."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    shards = np.random.Generator(np.random.Philox(key=[seed, CYCLE])).permutation(len(sizes))
    shards = shards[generator.permutation(len(sizes))]
    generator.permutation(1)
    count = ceil(len(sizes) / buffer)
    order = []
    for first in generator.permutation(count):
        rows = [sum(sizes[:shard]) + row for shard in shards[first::count] for row in range(sizes[shard])]
        order += generator.permutation(rows).tolist()
    return order


@settings(deadline=None, max_examples=40)
@given(sizes=SIZES, seed=SEEDS, epoch=st.integers(0, 50), buffer=st.integers(1, 5))
def test_an_epoch_holds_every_row_once_in_the_defined_order(
    sizes: list[int], seed: int, epoch: int, buffer: int
) -> None:
    sampler = ShardShuffleSampler(sizes, seed, buffer)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(sum(sizes))) and len(sampler) == len(order)
    assert order == plain_order(sizes, seed, epoch, buffer)


@settings(deadline=None, max_examples=40)
@given(caches=CACHES, seed=SEEDS, epoch=st.integers(0, 50), alpha=st.floats(0.05, 1))
def test_the_order_is_a_function_of_seed_and_epoch_alone(
    caches: list[list[int]], seed: int, epoch: int, alpha: float
) -> None:
    fresh, used = sampler_of(caches, seed, epoch, alpha=alpha), sampler_of(caches, seed, epoch + 1, alpha=alpha)
    list(used)
    used.set_epoch(epoch)
    next(iter(used))
    assert list(used) == list(fresh) == list(fresh)


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(sampler_of([[8, 8, 8]], seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_a_buffer_touches_few_shards() -> None:
    order = np.array(list(ShardShuffleSampler([10] * 12, seed=3, buffer_shards=3)))
    for first in range(0, len(order), 30):
        assert len(np.unique(order[first : first + 30] // 10)) == 3


@settings(deadline=None, max_examples=60)
@given(caches=CACHES, seed=SEEDS, epoch=st.integers(0, 20), alpha=st.floats(0.05, 1))
def test_caches_have_their_share_and_rows_come_equally_often(
    caches: list[list[int]], seed: int, epoch: int, alpha: float
) -> None:
    order = list(sampler_of(caches, seed, epoch, alpha=alpha))
    total = sum(map(sum, caches))
    assert len(order) == total
    weights = np.array([sum(cache) for cache in caches]) ** alpha
    times, start = Counter(order), 0
    for cache, weight in zip(caches, weights, strict=True):
        rows = [times[row] for row in range(start, start + sum(cache))]
        assert abs(sum(rows) - total * weight / weights.sum()) < 1
        assert max(rows) - min(rows) <= 1
        start += sum(cache)


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.integers(1, 10**9), min_size=1, max_size=30))
def test_with_exponent_one_every_cache_is_taken_as_it_is(rows: list[int]) -> None:
    assert language_rows(rows, 1.0) == rows


def test_the_shares_are_those_of_the_formula() -> None:
    assert language_rows([1000, 10], 0.5) == [918, 92]


@settings(deadline=None, max_examples=40)
@given(caches=CACHES, seed=SEEDS, first=st.integers(0, 20), alpha=st.floats(0.3, 1))
def test_epochs_take_turns_through_the_rows_of_a_large_cache(
    caches: list[list[int]], seed: int, first: int, alpha: float
) -> None:
    """Over any epochs in a row, the rows of a cache have come equally often up to two, and all of them in time."""
    targets = language_rows([sum(cache) for cache in caches], alpha)
    epochs = max(ceil(sum(cache) / target) for cache, target in zip(caches, targets, strict=True))
    times: Counter[int] = Counter()
    for epoch in range(first, first + epochs):
        times.update(sampler_of(caches, seed, epoch, alpha=alpha))
    start = 0
    for cache in caches:
        rows = [times[row] for row in range(start, start + sum(cache))]
        assert min(rows) >= 1 and max(rows) - min(rows) <= 2
        start += sum(cache)


@settings(deadline=None, max_examples=60)
@given(caches=CACHES, seed=SEEDS, epoch=st.integers(0, 20), alpha=st.floats(0.05, 1), buffer=st.integers(1, 5))
def test_a_row_repeats_in_a_buffer_only_if_buffers_are_too_few(
    caches: list[list[int]], seed: int, epoch: int, alpha: float, buffer: int
) -> None:
    buffers = buffers_of(sampler_of(caches, seed, epoch, alpha=alpha, buffer_shards=buffer))
    ends = np.cumsum([size for cache in caches for size in cache])
    takes = Counter(row for _, rows in buffers for row in rows)
    of_shard: Counter[int] = Counter()
    for row, count in takes.items():
        shard = int(np.searchsorted(ends, row, side="right"))
        of_shard[shard] = max(of_shard[shard], count)
    for shards, rows in buffers:
        assert len(shards) <= buffer
        assert set(np.searchsorted(ends, rows, side="right").tolist()) == set(shards)
        for row, count in Counter(rows).items():
            shard = int(np.searchsorted(ends, row, side="right"))
            assert count <= ceil(of_shard[shard] / len(buffers))


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_caches_lie_evenly_over_the_epoch(alpha: float) -> None:
    """Sizes that differ twentyfold: every buffer has of each cache what is due to it, up to a shard."""
    caches = [[8] * 100, [8] * 40, [8] * 5]
    buffers = buffers_of(sampler_of(caches, seed=5, alpha=alpha))
    owner = np.repeat([0, 1, 2], [len(cache) for cache in caches])
    for number in range(3):
        pieces = [len({row // 8 for row in rows if owner[row // 8] == number}) for _, rows in buffers]
        assert max(pieces) - min(pieces) <= 1


def test_batches_mix_languages() -> None:
    order = np.array(list(sampler_of([[64] * 12, [64] * 12], seed=1)))
    for first in range(0, len(order), 32):
        assert 4 < (order[first : first + 32] < 12 * 64).sum() < 28


def test_two_processes_see_the_batches_of_one() -> None:
    sampler = sampler_of([[16] * 9, [16] * 3], alpha=0.5)
    one = list(BatchSampler(sampler, 16, drop_last=True))
    ranks = [list(BatchSamplerShard(BatchSampler(sampler, 8, drop_last=True), 2, rank)) for rank in (0, 1)]
    assert [first + second for first, second in zip(*ranks, strict=True)] == one


def test_the_current_and_next_buffer_and_the_end_are_announced() -> None:
    told: list[Sequence[Buffer]] = []
    sampler = ShardShuffleSampler([2] * 12, seed=0, expect=told.append)
    rows = iter(sampler)
    first = [next(rows) for _ in range(8)]
    assert len(told) == 1 and sorted({row // 2 for row in first}) == list(told[0][0])
    next(rows)
    assert len(told) == 2 and told[0][1] == told[1][0]
    rows.close()
    assert told[2:] == [[]]
    told.clear()
    list(sampler)
    assert [len(upcoming) for upcoming in told] == [2, 2, 1, 0]


@pytest.mark.parametrize("alpha", [0.0, -0.5, 1.5, float("nan")])
def test_an_exponent_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(CometError, match=r"language sampling exponent .*: expected a number above 0, and at most 1"):
        ShardShuffleSampler([1], 0, alpha=alpha)
