"""Distances between two runs of a teacher over the same targets, for the comparisons of all signals.

A value that only one run keeps is also compared: it cannot lie above the last value that the other run keeps.
"""

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray]
Errors = dict[str, NDArray[np.float64]]
"""By measure, one number for each value, flat."""


def looked_up(ids: NDArray[np.int32], among: NDArray[np.int32], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return [T, k]: the value of each id among those of the same target, NaN for −1 and for ids not among them."""
    target = np.arange(len(ids), dtype=np.int64)[:, None] << 32
    keys, wanted = (target + among).ravel(), target + ids
    order = np.argsort(keys)
    nearest = order[np.searchsorted(keys, wanted, sorter=order).clip(max=keys.size - 1)]
    is_found = (keys[nearest] == wanted) & (ids >= 0)
    return np.where(is_found, values.ravel()[nearest], np.nan)


def both_ways(
    value: NDArray, match: NDArray, highest_again: NDArray, value_again: NDArray, match_again: NDArray, highest: NDArray
) -> NDArray[np.float64]:
    """Return [2 T, k]: the distance of each value from its match; without one, its excess over the highest possible."""
    return np.concatenate(
        [
            np.where(np.isnan(m), np.maximum(v - bound, 0.0), np.abs(v - m))
            for v, m, bound in ((value, match, highest_again), (value_again, match_again, highest))
        ]
    )


def bucketed_kl(value: NDArray, match: NDArray, rest: NDArray, rest_again: NDArray) -> NDArray[np.float64]:
    """Return [T]: Σ p log (p / q) over the tokens with log p `value` and log q `match` [T, k], where that is not NaN,
    and the rest [T]; p and q are scaled to sum to 1."""
    has_match = ~np.isnan(match)
    p, q = np.where(has_match, np.exp(value), 0.0), np.where(has_match, np.exp(match), 0.0)  # [T, k]
    total, total_again = p.sum(1) + rest, q.sum(1) + rest_again
    ratio = np.where(has_match, value - match, 0.0) - np.log(total / total_again)[:, None]
    p, rest, rest_again = p / total[:, None], rest / total, rest_again / total_again
    of_rest = np.where(rest > 0, rest * np.log(rest / rest_again), 0.0)
    return np.maximum((p * ratio).sum(1) + of_rest, 0.0)
