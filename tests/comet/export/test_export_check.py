"""The comparison of an exported model with torch: its figures, their bounds, and how they are printed."""

from dataclasses import replace

import numpy as np
import pytest

from cache_tools.errors import CometError
from comet.export.check import LARGEST_DIFFERENCE, LEAST_AGREEMENT, Comparison, compare, require_close


def test_figures_too_far_off_and_nan_are_refused() -> None:
    near = Comparison(10, difference=LARGEST_DIFFERENCE, agreement=LEAST_AGREEMENT, variation=0.05)
    require_close(near, False, "m")
    require_close(near, True, "m")
    for far in (replace(near, difference=1.1e-4), replace(near, difference=float("nan"))):
        with pytest.raises(CometError, match="m: the exported logits differ from torch's by"):
            require_close(far, False, "m")
    for far in (replace(near, agreement=0.89), replace(near, variation=0.051), replace(near, variation=float("nan"))):
        with pytest.raises(CometError, match="m: in int8 its best answer is torch's at"):
            require_close(far, True, "m")


@pytest.mark.parametrize(
    ("agreement", "said"), [(1.0, "100.0%"), (1 - 1 / 2600, "99.9%"), (LEAST_AGREEMENT, "90.0%"), (0.8996, "89.9%")]
)
def test_agreement_is_never_said_to_be_more_than_it_is(agreement: float, said: str) -> None:
    assert Comparison(2600, difference=0.1, agreement=agreement, variation=0.01).agreed == said


def test_too_little_agreement_is_not_said_to_be_enough() -> None:
    with pytest.raises(
        CometError, match=r"torch's at 89\.9% of 10 positions .* expected at least 90% and at most 0\.05"
    ):
        require_close(Comparison(10, difference=0.1, agreement=0.8996, variation=0.01), True, "m")


def test_the_comparison_counts_every_position() -> None:
    ours = [np.log(np.array([[0.5, 0.5], [0.9, 0.1]], np.float32)), np.zeros((100, 2), np.float32)]
    theirs = [np.log(np.array([[0.25, 0.75], [0.9, 0.1]], np.float32)), np.zeros((100, 2), np.float32)]
    compared = compare(iter(ours), iter(theirs))
    assert compared.positions == 102
    assert compared.difference == pytest.approx(np.log(2), rel=1e-6)
    assert compared.agreement == 101 / 102
    assert compared.variation == pytest.approx(0.25 / 102)
    with pytest.raises(ValueError, match="shape"):
        compare(iter(ours), iter(theirs[1:]))
