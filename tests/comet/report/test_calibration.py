"""Calibration and frequency bins are those of plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comet.report.analysis import Analysis, CalibrationBin, by_frequency, calibration, expected_calibration_error


def test_calibration_of_a_hand_made_case() -> None:
    confidence = np.array([0.0, 0.1, 0.1000001, 0.55, 0.6, 1.0])
    correct = np.array([False, True, False, True, True, True])
    bins = calibration(confidence, correct)
    assert [(b.low, b.high, b.targets) for b in bins] == [(0, 0.1, 2), (0.1, 0.2, 1), (0.5, 0.6, 2), (0.9, 1.0, 1)]
    assert bins[0] == CalibrationBin(0.0, 0.1, 2, pytest.approx(0.05), 0.5)
    expected = (2 * 0.45 + 1 * 0.1000001 + 2 * (1 - 0.575) + 0) / 6
    assert expected_calibration_error(bins) == pytest.approx(expected)
    assert math.isnan(expected_calibration_error(calibration(np.array([]), np.array([], dtype=bool))))


@settings(deadline=None, max_examples=60)
@given(pairs=st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), bins=st.integers(1, 12))
def test_calibration_is_that_of_a_plain_loop(pairs: list[tuple[float, bool]], bins: int) -> None:
    found = calibration(np.array([c for c, _ in pairs]), np.array([r for _, r in pairs]), bins)
    error, total = 0.0, 0
    for b in range(bins):
        inside = [(c, r) for c, r in pairs if b / bins < c <= (b + 1) / bins or (b == 0 and c == 0)]
        if inside:
            accuracy = sum(r for _, r in inside) / len(inside)
            confidence = sum(c for c, _ in inside) / len(inside)
            error += len(inside) / len(pairs) * abs(accuracy - confidence)
            one = next(x for x in found if x.low == b / bins)
            assert (one.targets, one.high) == (len(inside), (b + 1) / bins)
            assert (one.accuracy, one.confidence) == pytest.approx((accuracy, confidence))
            total += 1
    assert total == len(found)
    assert expected_calibration_error(found) == pytest.approx(error)


@settings(deadline=None, max_examples=40)
@given(
    targets=st.lists(
        st.tuples(st.integers(0, 10**7), st.floats(0, 20), st.booleans(), st.booleans()), min_size=1, max_size=50
    )
)
def test_frequency_bins_are_those_of_a_plain_loop(targets: list[tuple[int, float, bool, bool]]) -> None:
    count, kl, correct, teacher = (np.array(column) for column in zip(*targets, strict=True))
    empty = np.zeros(len(targets))
    look = Analysis(count, count, kl, correct, teacher, correct, empty, empty, [], [], 1, 1)
    found = by_frequency(look)
    for one in found:
        inside = [t for t in targets if one.low <= t[0] <= one.high]
        assert one.targets == len(inside) > 0
        assert one.kl == pytest.approx(sum(t[1] for t in inside) / len(inside))
        assert one.accuracy == pytest.approx(sum(t[2] for t in inside) / len(inside))
        assert one.teacher_accuracy == pytest.approx(sum(t[3] for t in inside) / len(inside))
    assert sum(one.targets for one in found) == len(targets)
    assert all(one.high == (10 * one.low - 1 if one.low else 9) for one in found)
