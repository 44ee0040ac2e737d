"""Masking and the hashes behind it: exact properties, statistics, and values that may never change."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cache_tools.signals import UNUSED_ID, UNUSED_POSITION
from cache_tools.text.draws import threshold_offsets
from cache_tools.text.masking import (
    MaskedRows,
    Masking,
    content_keys,
    mask_rows,
    max_targets,
    row_keys,
    targets_of,
)
from cache_tools.text.packing import document_hash

BOS, PAD, EOS, UNK, MASK = 0, 1, 2, 3, 4
FIRST_ID = 5
SPECIAL = (BOS, PAD, EOS, UNK, MASK)
SEEN = np.arange(1000, 1500, dtype=np.int32)  # none of them in the rows, so that every replacement shows


def padded_rows(lengths: list[int], seq_len: int, seed: int = 0) -> tuple[NDArray[np.int32], NDArray[np.uint16]]:
    """Rows `bos … eos` of these lengths with random tokens below 1000, an `<unk>` and a separator inside some."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(FIRST_ID, 1000, (len(lengths), seq_len), dtype=np.int32)
    tokens[::3, 3], tokens[::2, 5] = UNK, EOS
    length = np.array(lengths, dtype=np.uint16)
    tokens[:, 0] = BOS
    tokens[np.arange(len(lengths)), length - 1] = EOS
    tokens[np.arange(seq_len) >= length[:, None]] = PAD
    return tokens, length


def masking_with(mask_prob: float = 0.15, seed: int = 0) -> Masking:
    return Masking(mask_prob, seed, MASK, SPECIAL, SEEN)


def masked_positions(rows: MaskedRows, row: int) -> list[int]:
    return [p for p in rows.target_position[row].tolist() if p != UNUSED_POSITION]


def assert_same_rows(found: MaskedRows, expected: MaskedRows) -> None:
    for field in fields(MaskedRows):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name), field.name)


def test_masking_does_not_depend_on_the_batch() -> None:
    tokens, length = padded_rows([32, 9, 20, 3, 31, 16, 32, 12], 32)
    whole = mask_rows(tokens, length, 3, masking_with())
    order = [5, 2, 7, 0]
    part = mask_rows(tokens[order], length[order], 3, masking_with())
    assert_same_rows(part, MaskedRows(*(getattr(whole, field.name)[order] for field in fields(MaskedRows))))


def test_masking_does_not_depend_on_the_padding() -> None:
    tokens, length = padded_rows([24, 9, 17], 24)
    wider = np.full((3, 40), PAD, dtype=np.int32)
    wider[:, :24] = tokens
    narrow, wide = (mask_rows(t, length, 1, masking_with()) for t in (tokens, wider))
    slots = narrow.target_position.shape[1]
    np.testing.assert_array_equal(wide.target_position[:, :slots], narrow.target_position)
    np.testing.assert_array_equal(wide.input_ids[:, :24], narrow.input_ids)
    np.testing.assert_array_equal(wide.row_key, narrow.row_key)


def test_masks_change_with_seed_view_and_tokens() -> None:
    tokens, length = padded_rows([32] * 8, 32)
    first = mask_rows(tokens, length, 0, masking_with()).target_position
    other = tokens.copy()
    other[:, 7] += 1
    for changed in (
        mask_rows(tokens, length, 1, masking_with()),
        mask_rows(tokens, length, 0, masking_with(seed=1)),
        mask_rows(other, length, 0, masking_with()),
    ):
        assert (changed.target_position != first).any(axis=1).all()


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(7, 30), min_size=1, max_size=6),
    st.floats(0.01, 0.99),
    st.integers(0, 2**63 - 1),
    st.integers(0, 999),
)
def test_targets_are_true_tokens_in_ascending_slots(lengths: list[int], mask_prob: float, seed: int, view: int) -> None:
    tokens, length = padded_rows(lengths, 30, seed % 1000)
    rows = mask_rows(tokens, length, view, masking_with(mask_prob, seed))
    assert rows.input_ids.dtype == np.int32
    assert rows.target_position.shape == rows.target_id.shape == (len(lengths), max_targets(30, mask_prob))
    for row, used in enumerate(int(n) for n in length):
        positions = masked_positions(rows, row)
        count = len(positions)
        assert count >= 1
        assert positions == sorted(set(positions))
        assert all(p < used and tokens[row, p] not in SPECIAL for p in positions)
        assert (rows.target_position[row, count:] == UNUSED_POSITION).all()
        assert (rows.target_id[row, :count] == tokens[row, positions]).all()
        assert (rows.target_id[row, count:] == UNUSED_ID).all()
        others = np.setdiff1d(np.arange(30), positions)
        assert (rows.input_ids[row, others] == tokens[row, others]).all()
        replaced = set(rows.input_ids[row, positions].tolist()) - set(tokens[row, positions].tolist())
        assert replaced <= {MASK, *SEEN.tolist()}


@pytest.mark.parametrize("mask_prob", [0.15, 0.3, 0.5, 0.9, 0.01])
@pytest.mark.parametrize("cycle", [0, 1, 5])
def test_views_mask_every_position_once_before_any_twice(mask_prob: float, cycle: int) -> None:
    tokens, length = padded_rows([32, 31, 20, 9, 7, 3], 32)
    for row in range(len(length)):
        alone = tokens[row : row + 1], length[row : row + 1]
        maskable = [p for p in range(int(length[row])) if tokens[row, p] not in SPECIAL]
        wanted = int(targets_of(np.array(len(maskable)), mask_prob))
        views = -(-len(maskable) // wanted)
        slices = [
            masked_positions(mask_rows(*alone, view, masking_with(mask_prob)), 0)
            for view in range(cycle * views, (cycle + 1) * views)
        ]
        assert [len(positions) for positions in slices[:-1]] == [wanted] * (views - 1)
        assert sorted(p for positions in slices for p in positions) == maskable


def test_each_cycle_of_views_has_its_own_permutation() -> None:
    tokens, length = padded_rows([32], 32)
    views = -(-28 // 4)
    assert len([p for p in tokens[0] if p not in SPECIAL]) == 28
    first, second = (masked_positions(mask_rows(tokens, length, v, masking_with()), 0) for v in (0, views))
    assert first != second


def test_a_row_without_maskable_tokens_has_no_targets() -> None:
    tokens = np.array([[BOS, UNK, EOS, PAD, PAD, PAD, PAD, PAD]], dtype=np.int32)
    rows = mask_rows(tokens, np.array([3], dtype=np.uint16), 0, masking_with())
    assert masked_positions(rows, 0) == []
    np.testing.assert_array_equal(rows.input_ids, tokens)


def test_shares_of_the_masking() -> None:
    tokens, length = padded_rows([128] * 3000, 128)
    rows = mask_rows(tokens, length, 0, masking_with())
    row, slot = np.nonzero(rows.target_position != UNUSED_POSITION)
    position = rows.target_position[row, slot].astype(int)
    shown, true = rows.input_ids[row, position], rows.target_id[row, slot]
    targets, maskable = len(row), int((~np.isin(tokens, SPECIAL)).sum())
    assert targets / maskable == pytest.approx(0.15, abs=0.002)  # whole numbers of 124 to 126 positions
    for share, found in ((0.8, shown == MASK), (0.1, shown == true), (0.1, np.isin(shown, SEEN))):
        assert found.mean() == pytest.approx(share, abs=4.5 * np.sqrt(share * (1 - share) / targets))
    drawn = np.bincount(shown[np.isin(shown, SEEN)] - SEEN[0], minlength=len(SEEN))
    expected = drawn.sum() / len(SEEN)
    chi_square = ((drawn - expected) ** 2 / expected).sum()
    assert abs(chi_square - len(SEEN)) < 5 * np.sqrt(2 * len(SEEN))
    often = np.bincount(position, minlength=128)[6:127]  # positions before 6 are special in some rows
    assert np.abs(often - 450).max() < 5 * np.sqrt(450)


def test_seed_view_and_position_draw_independently() -> None:
    tokens, length = padded_rows([128] * 500, 128)
    one, two, three = (
        mask_rows(tokens, length, view, masking_with(0.5, seed)).input_ids == MASK
        for view, seed in ((0, 0), (0, 1), (2, 0))
    )
    assert (one & two).mean() == pytest.approx(one.mean() * two.mean(), abs=0.01)
    assert (one & three).mean() == pytest.approx(one.mean() * three.mean(), abs=0.01)


@pytest.mark.parametrize(
    ("maskable", "mask_prob", "targets"),
    [(126, 0.15, 19), (100, 0.15, 15), (10, 0.15, 2), (3, 0.15, 1), (1, 0.15, 1), (0, 0.15, 0), (4, 0.99, 4)],
)
def test_number_of_targets(maskable: int, mask_prob: float, targets: int) -> None:
    assert int(targets_of(np.array(maskable), mask_prob)) == targets


def test_golden_values() -> None:
    """Caches already built hold these: a change here makes every one of them another cache.

    The values agree with a second implementation in plain Python integers.
    """
    tokens = np.array([[BOS, *range(10, 25), EOS, PAD], [BOS, 20, 21, 22, EOS, *[PAD] * 13]], dtype=np.int32)
    length = np.array([17, 5], dtype=np.uint16)
    rows = mask_rows(tokens, length, 1, masking_with(0.4, seed=7))
    assert content_keys(tokens, length).tolist() == [17306133110301814572, 1116429941143890581]
    assert rows.row_key.tolist() == [5795703845761061712, 14252763230628053312]
    assert row_keys(content_keys(tokens, length), 1).tolist() == rows.row_key.tolist()
    assert rows.target_position.tolist() == [[4, 5, 6, 8, 11, 14], [1, *[UNUSED_POSITION] * 5]]
    assert rows.target_id.tolist() == [[13, 14, 15, 17, 20, 23], [20, *[UNUSED_ID] * 5]]
    shown = {position: int(rows.input_ids[0, position]) for position in (4, 5, 6, 8, 11, 14)}
    assert shown == {4: 13, 5: 1459, 6: 15, 8: 17, 11: MASK, 14: MASK}
    offsets = (threshold_offsets(rows.row_key, rows.target_position, 7) * 2**32).astype(np.uint64)
    assert offsets[0].tolist() == [207052174, 840796861, 1364366523, 1961104674, 2434270227, 755403644]
    assert document_hash("Mwaramutse neza, nshuti.") == 16052281002550023371
