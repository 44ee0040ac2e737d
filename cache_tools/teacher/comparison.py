"""How far two runs of a teacher over the same targets lie apart: what the signals' comparisons have in common.

A value that only one run keeps is compared, too: it cannot lie above the last value that the other run keeps.
"""

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray]
Errors = dict[str, NDArray[np.float64]]
"""By measure, a number for each value, flat."""


def looked_up(ids: NDArray[np.int32], among: NDArray[np.int32], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[T, k] for each id its value among those of the same target, NaN for −1 and where it is not there."""
    target = np.arange(len(ids), dtype=np.int64)[:, None] << 32
    keys, wanted = (target + among).ravel(), target + ids
    order = np.argsort(keys)
    place = order[np.searchsorted(keys, wanted, sorter=order).clip(max=keys.size - 1)]
    there = (keys[place] == wanted) & (ids >= 0)
    return np.where(there, values.ravel()[place], np.nan)


def both_ways(
    value: NDArray, match: NDArray, highest_again: NDArray, value_again: NDArray, match_again: NDArray, highest: NDArray
) -> NDArray[np.float64]:
    """[2 T, k] how far each value is from its match, and where there is none how far above what it can be at most."""
    return np.concatenate(
        [
            np.where(np.isnan(m), np.maximum(v - bound, 0.0), np.abs(v - m))
            for v, m, bound in ((value, match, highest_again), (value_again, match_again, highest))
        ]
    )


def bucketed_kl(value: NDArray, match: NDArray, rest: NDArray, rest_again: NDArray) -> NDArray[np.float64]:
    """[T] Σ p log (p / q) over the tokens with log p `value` and log q `match` [T, k], where that is not NaN, and the
    rest [T]; both of them are scaled to sum to 1."""
    there = ~np.isnan(match)
    p, q = (np.where(there, np.exp(v), 0.0) for v in (value, match))  # [T, k]
    total, total_again = p.sum(1) + rest, q.sum(1) + rest_again
    ratio = np.where(there, value - match, 0.0) - np.log(total / total_again)[:, None]
    p, rest, rest_again = p / total[:, None], rest / total, rest_again / total_again
    of_rest = np.where(rest > 0, rest * np.log(rest / rest_again), 0.0)
    return np.maximum((p * ratio).sum(1) + of_rest, 0.0)
