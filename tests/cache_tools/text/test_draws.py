"""Draws by hash: the published finaliser, their distribution, and golden values that no version may change."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_tools.signals import UNUSED_POSITION
from cache_tools.text.draws import attention_queries, key_offsets, mix, threshold_offsets

QUERIES = [[[1, 8, 15], [4, 11, 18]], [[1, 5, 65535], [1, 5, 65535]]]
OFFSETS = [[[4242511307, 2674382646], [3434945150, 4207867293]], [[309747430, 776587873], [4102855897, 3102509351]]]
KEYS = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64)


def test_mix_is_the_published_splitmix64() -> None:
    """The generator's first outputs for the seeds 0 and 1234567, as in its reference implementation."""
    found = mix(np.array([0, 1234567], dtype=np.uint64), np.uint64(0))
    assert found.tolist() == [0xE220A8397B1DCDAF, 6457827717110365317]


def test_threshold_offsets_fit_their_use() -> None:
    """Multiples of 2⁻³² below one, evenly spread, different for every row, position and seed."""
    keys = np.arange(400, dtype=np.uint64)
    positions = np.tile(np.arange(50, dtype=np.uint16), (400, 1))
    offsets = threshold_offsets(keys, positions, 0)
    assert offsets.dtype == np.float64
    assert (offsets * 2**32 == np.floor(offsets * 2**32)).all()
    assert (offsets >= 0).all()
    assert (offsets < 1).all()
    assert len(np.unique(offsets)) > 0.999 * offsets.size
    assert np.abs(np.bincount((offsets * 20).astype(int).ravel()) - 1000).max() < 5 * np.sqrt(1000)
    assert (offsets != threshold_offsets(keys, positions, 1)).any(axis=1).all()


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 2**15), st.integers(1, 1024), st.integers(0, 2**64 - 1))
def test_queries_are_one_of_each_part_of_a_row(length: int, every: int, key: int) -> None:
    slots = -(-length // every) + 2
    found = attention_queries(np.array([key], np.uint64), np.array([length]), (0, 3), every, slots)
    assert found.dtype == np.uint16 and found.shape == (1, 2, slots)
    count = -(-length // every)
    assert (found[..., count:] == UNUSED_POSITION).all()
    for positions in found[0, :, :count].astype(int):
        assert positions[0] >= 0 and positions[-1] < length and (np.diff(positions) > 0).all()
        parts = np.arange(count) * length / count
        assert (positions >= np.floor(parts)).all() and (positions <= parts + length / count).all()


@pytest.mark.parametrize("length", [1, 7, 8, 100, 128])
def test_every_position_is_a_query_equally_often(length: int) -> None:
    every, slots = 8, 16
    found = attention_queries(KEYS, np.full(len(KEYS), length), (5,), every, slots)[:, 0]
    count = -(-length // every)
    share = np.bincount(found[:, :count].ravel(), minlength=length) / len(KEYS)
    deviation = 5 * np.sqrt(count / length / len(KEYS))
    assert np.abs(share - count / length).max() <= deviation


def test_queries_differ_between_rows_and_layers_and_depend_on_nothing_else() -> None:
    length = np.full(len(KEYS), 128)
    found = attention_queries(KEYS, length, (2, 5, 7), 8, 16)
    assert (found[:, 0] != found[:, 1]).any(1).mean() > 0.8  # of eight first positions, an eighth are equal
    assert (found[:-1] != found[1:]).any((1, 2)).mean() > 0.99
    np.testing.assert_array_equal(attention_queries(KEYS[7:9], length[7:9], (5,), 8, 20)[:, 0, :16], found[7:9, 1])
    assert found.min() == 0 and found.max() == 127


def test_key_offsets_fit_their_use() -> None:
    offsets = key_offsets(KEYS, (2, 5), 16)
    assert offsets.shape == (len(KEYS), 2, 16) and offsets.dtype == np.float64
    assert ((offsets >= 0) & (offsets < 1) & (offsets * 2**32 == np.floor(offsets * 2**32))).all()
    assert np.abs(offsets.mean((0, 1)) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(offsets.reshape(len(KEYS), -1).T) - np.eye(32)).max() < 0.05
    np.testing.assert_array_equal(key_offsets(KEYS[3:5], (5,), 9)[:, 0], offsets[3:5, 1, :9])


def test_queries_and_offsets_are_those_of_every_version() -> None:
    keys, length = np.array([1, 2**64 - 1], np.uint64), np.array([20, 9])
    assert attention_queries(keys, length, (0, 3), 8, 3).tolist() == QUERIES
    assert (key_offsets(keys, (0, 3), 2) * 2**32).astype(np.uint64).tolist() == OFFSETS
