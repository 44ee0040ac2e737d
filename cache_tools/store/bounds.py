"""Checks of the values of a shard that must pass before any computation, by the table in `signals`. Pure functions.

`check_ranges` proves every index in range, `check_signals` every number finite and every token unique; `verify.values`
checks the relations between values.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import CometError
from cache_tools.signals import ARRAYS, UNUSED_ID, UNUSED_POSITION, Legal, family_of, require_declared
from cache_tools.store.recipe import Recipe

ABOVE_ONE = 2e-3  # a rounded log-probability may exceed 0 by this much
MINUS_INFINITY = 0xFC00  # float16's bits

Arrays = dict[str, NDArray]


def check_ranges(arrays: Arrays, recipe: Recipe, where: str) -> None:
    """Raise CometError for an undeclared array, an id or position out of range, or attention at the wrong places."""
    for name, array in require_declared(arrays, recipe, where).items():
        values = arrays[name]
        if array.span is not None:
            low, high = array.span(recipe)
            if not (values.min() >= low and values.max() < high):
                raise CometError(f"{where}: {name}: a value lies outside {low} to {high - 1}; the cache is damaged")
    if "attention_gap" in arrays and "length" in arrays:
        _check_keys(arrays["attention_gap"], arrays["length"].astype(np.int64), recipe, where)
    if "target_position" in arrays and "length" in arrays:
        position = arrays["target_position"]
        if np.any((position != UNUSED_POSITION) & (position >= arrays["length"][:, None])):
            raise CometError(f"{where}: target_position: a target lies in the padding; the cache is damaged")


def _check_keys(gap: NDArray[np.uint16], length: NDArray[np.int64], recipe: Recipe, where: str) -> None:
    """Raise CometError for a query without a key, keys of no query, or in the padding. `gap` [R, layers, S, k]."""
    is_query = np.arange(recipe.attention_slots) < -(-length // recipe.attention_queries)[:, None]  # [R, S]
    is_used = gap < recipe.seq_len
    if not (is_used[..., 0] == is_query[:, None]).all() or (is_used[..., 1:] & ~is_used[..., :-1]).any():
        raise CometError(
            f"{where}: attention_gap: expected keys of one query in {recipe.attention_queries} of each row, and of no "
            "other; the cache is damaged"
        )
    key = (gap + np.uint16(1)).cumsum(-1, dtype=np.int32) - 1
    if np.any(is_used & (key >= length[:, None, None, None])):
        raise CometError(f"{where}: attention_gap: a key lies in the padding; the cache is damaged")


def check_signals(arrays: Arrays, where: str) -> None:
    """Raise CometError for an undeclared array, and for the first illegal value at a target.

    `arrays` holds target_position and the arrays to check.
    """
    used = arrays["target_position"] != UNUSED_POSITION  # [R, M]
    for name, values in arrays.items():
        family_of(name)
        if (legal := ARRAYS[name].legal) is None:
            continue
        for illegal in illegal_values(legal, values, arrays):
            # counting is fast: in a sound shard all illegal values lie in the few slots without a target
            if np.count_nonzero(illegal) != np.count_nonzero(illegal[~used]):
                at_target = illegal & used.reshape(used.shape + (1,) * (illegal.ndim - 2))
                row, slot = (int(index) for index in np.argwhere(at_target)[0][:2])
                raise CometError(
                    f"{where}: {name}: expected {legal.value} at row {row}, target {slot}; the cache is damaged"
                )


def illegal_values(legal: Legal, values: NDArray, arrays: Arrays) -> Iterator[NDArray[np.bool_]]:
    """Yield masks [R, M, …] of the values of one array that are illegal at a target; `arrays` are its shard's."""
    match legal:
        case Legal.RISING:
            used = values != UNUSED_POSITION
            yield np.pad((values[:, 1:] <= values[:, :-1]) & used[:, 1:], ((0, 0), (1, 0)))
        case Legal.TOKEN:
            yield values == UNUSED_ID
        case Legal.DISTINCT:
            yield values == UNUSED_ID
            yield _repetitions(values)
        case Legal.SAMPLED:
            yield _repetitions(values)
            if "sample_logweight" in arrays:
                yield (values == UNUSED_ID) != _is_minus_infinity(arrays["sample_logweight"])
        case Legal.LOGPROB:
            yield ~is_logprob(values)
        case Legal.LOGWEIGHT:
            yield ~(is_logprob(values) | _is_minus_infinity(values))
        case Legal.LOGMASS:
            yield np.isnan(values) | (values == np.inf)  # −∞ where nothing is left
        case Legal.FINITE:
            yield ~np.isfinite(values)


def repeated(ids: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return […]: whether a token occurs twice among […, k], apart from −1."""
    return np.asarray(_repetitions(ids).any(-1))


def _repetitions(ids: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return […, k − 1]: where, among the sorted ids, one equals its predecessor, apart from −1."""
    ranked = np.sort(ids, axis=-1)
    return (ranked[..., 1:] == ranked[..., :-1]) & (ranked[..., 1:] >= 0)


def is_logprob(values: NDArray[np.float16]) -> NDArray[np.bool_]:
    """Return which values are finite and, but for rounding, at most 0. Compares bits, as numpy's own float16 is slow.

    The sign is the highest bit; the others order numbers of one sign, from 0 to ∞, and then NaN.
    """
    bits = values.view(np.uint16)
    most = np.float16(ABOVE_ONE).view(np.uint16)
    return (bits <= most) | ((bits >= 0x8000) & (bits < MINUS_INFINITY))


def _is_minus_infinity(values: NDArray[np.float16]) -> NDArray[np.bool_]:
    return values.view(np.uint16) == MINUS_INFINITY
