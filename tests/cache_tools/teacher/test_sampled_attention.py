"""The sample of keys that a cache keeps of a query's attention: its size, its weights, its expectation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cache_tools.attention import decode_keys, encode_keys
from cache_tools.signals import WEIGHT_STEPS
from cache_tools.teacher.attention import keep_keys

DRAWS = 4000


def row_of(seed: int, length: int, sharpness: float) -> Tensor:
    """A row of attention [L], a softmax."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(length, generator=generator) * sharpness).softmax(0)


def decoded(key: Tensor, code: Tensor, seq_len: int) -> Tensor:
    """Whole rows [..., L] of weights, of what `keep_keys` returns."""
    kept, weight = decode_keys(encode_keys(key, seq_len), code, seq_len)
    return weight.new_zeros(*key.shape[:-1], seq_len).scatter_add(-1, kept, weight)


def sampled(row: Tensor, k: int, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and codes [draws, k] of one row [L], sampled from each of these offsets [draws]."""
    rows = row.expand(len(offsets), 1, 1, len(row))
    length = torch.full((len(offsets),), len(row))
    is_query = torch.ones(len(offsets), 1, 1, dtype=torch.bool)
    key, code = keep_keys(rows, length, is_query, k, offsets[:, None, None].double())
    return key[:, 0, 0], code[:, 0, 0]


@pytest.mark.parametrize("k", [1, 2, 8, 16])
@pytest.mark.parametrize("sharpness", [0.0, 1.0, 3.0, 8.0])
def test_the_expected_weight_of_a_key_is_its_attention(k: int, sharpness: float) -> None:
    """Over evenly spaced offsets, and so the mean loss and gradient are those of the whole row: both are linear in the
    weights."""
    row = row_of(0, 60, sharpness)
    key, code = sampled(row, k, (torch.arange(DRAWS) + 0.5) / DRAWS)
    mean = decoded(key, code, 60).mean(0)
    rounding = row.sqrt() / WEIGHT_STEPS + 0.5 / DRAWS + 3 / WEIGHT_STEPS**2
    # what rounding gives to the certain keys, it takes from the drawn ones
    assert ((mean - row).abs() <= 2 * rounding + (rounding * (row >= 1 / k)).sum() * row).all()


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 50), st.integers(1, 60), st.floats(0, 12), st.integers(0, 2**31), st.integers(0, 2**32 - 1))
def test_kept_keys_are_those_of_the_rule(length: int, k: int, sharpness: float, seed: int, offset: int) -> None:
    row = row_of(seed, length, sharpness)
    key, code = (values[0] for values in sampled(row, k, torch.tensor([offset * 2.0**-32], dtype=torch.float64)))
    used = key >= 0
    assert used[0] and key[used].tolist() == sorted(set(key[used].tolist())), "ascending, none twice"
    assert (code[~used] == 0).all() and key.shape == code.shape == (k,)
    p = row.double() / row.double().sum()
    certain = {i for i in range(length) if length <= k or p[i] >= 1 / k}
    found = {int(i): int(c) for i, c in zip(key[used], code[used], strict=True)}
    assert {i for i, c in found.items() if c} == {i for i in certain if round(WEIGHT_STEPS * float(p[i]) ** 0.5)}
    for i in certain & found.keys():
        assert abs(found[i] - WEIGHT_STEPS * float(p[i]) ** 0.5) <= 0.5 + 1e-4
    rest = float(1 - p[list(certain)].sum())
    drawn = [i for i, c in found.items() if not c]
    if length <= k:
        assert not drawn
    elif rest > 1e-9:
        assert abs(len(drawn) - max(int(rest * k + 2**-20), 1)) <= (abs(rest * k - round(rest * k)) < 1e-5)
    whole = decoded(key[None], code[None], length)[0]
    assert abs(whole.sum().item() - 1) < 1e-5


def test_every_key_of_a_short_row_is_kept_and_none_of_its_padding() -> None:
    rows = torch.tensor([0.1, 0.2, 0.7, 0.0, 0.0]).expand(1, 1, 1, 5)
    key, code = keep_keys(rows, torch.tensor([3]), torch.ones(1, 1, 1, dtype=torch.bool), 4, torch.zeros(1, 1, 1))
    assert key[0, 0, 0].tolist() == [0, 1, 2, -1]
    expected = [round(WEIGHT_STEPS * p**0.5) for p in (0.1, 0.2, 0.7)]
    assert code[0, 0, 0].tolist() == [*expected, 0]


def test_slots_without_a_query_and_rows_that_are_not_finite_keep_nothing() -> None:
    rows = row_of(0, 12, 1.0).repeat(4, 1, 1, 1)
    rows[1, 0, 0, 3], rows[2, 0, 0, 3] = torch.nan, torch.inf
    is_query = torch.tensor([True, True, True, False])[:, None, None]
    for k in (4, 12):
        key, code = keep_keys(rows, torch.full((4,), 12), is_query, k, torch.zeros(4, 1, 1, dtype=torch.float64))
        assert key[0, 0, 0, 0] >= 0
        assert (key[1:] == -1).all() and (code[1:] == 0).all()


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    rows = torch.stack([row_of(seed, 30, 2.0) for seed in range(6)])[:, None, None]  # [6, 1, 1, 30]
    offset = torch.from_numpy(np.random.default_rng(0).random((6, 1, 1)))
    together = keep_keys(rows, torch.full((6,), 30), torch.ones(6, 1, 1, dtype=torch.bool), 8, offset)
    for i in range(6):
        alone = keep_keys(
            rows[i : i + 1], torch.tensor([30]), torch.ones(1, 1, 1, dtype=torch.bool), 8, offset[i : i + 1]
        )
        for one, all_ in zip(alone, together, strict=True):
            assert torch.equal(one[0], all_[i])
