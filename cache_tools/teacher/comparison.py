"""How far two runs of a teacher over the same rows lie apart. Pure functions on the arrays of a cache.

What only one run keeps is compared, too: the other one says that it is not above the last value it keeps.
"""

import math

import numpy as np
from numpy.typing import NDArray

from cache_tools.signals import UNUSED_POSITION
from cache_tools.store.layout import rows_with_map
from cache_tools.store.recipe import Recipe
from cache_tools.verify.values import HALF, Arrays

Errors = dict[str, NDArray[np.float64]]
RATES = ("topk_id", "certain_id", "drawn_id")
LOGITS = {
    "topk": ("topk_id", "topk_logprob", "tail_logmass", "tail_logmass_seen"),
    "threshold": ("sample_id", "sample_logweight", "entropy", "entropy_seen"),
}
"""The arrays that are compared together."""
LEAST_DEVIATION = 2.0  # nats, of the log-probabilities of drawn tokens: a few of them may lie close together by chance


def errors_of(stored: Arrays, found: Arrays, recipe: Recipe) -> Errors:
    """By measure, a number for each value, flat; infinite where one of the two is no number.

    `stored` are rows of a cache with `target_position` and `length`, `found` the teacher's arrays of the same rows;
    those signals are compared that both hold. Values, tails and entropies are in nats. `kl`, for each target and
    temperature: the KL of the found from the stored distribution over the tokens that both keep (of a threshold sample:
    for certain) and the rest as one bucket, a lower bound of the true one. RATES: 1 for each stored id that is not
    found, else 0. `drawn_logprob`: see `drawn_bias`. `attention`, for each row of a map: the angle in radians between
    the roots of its values, which are what the codes hold.
    """
    used = stored["target_position"] != UNUSED_POSITION  # [R, M]
    errors: Errors = {}
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        if stored.keys() & found.keys() >= set(LOGITS[recipe.keep]):
            here, there = (
                {n: a[used] for n, a in arrays.items() if n in LOGITS[recipe.keep]} for arrays in (stored, found)
            )
            if recipe.keep == "topk":
                errors |= topk_errors(here, there, recipe)
            else:
                errors |= sample_errors(here, there, found["sample_logprob"][used], recipe)
        if "attention" in stored.keys() & found.keys():
            errors["attention"] = map_angles(stored["attention"], found["attention"], stored["length"])
    return {name: np.where(np.isfinite(e), e, np.inf).ravel() for name, e in errors.items()}


def topk_errors(stored: Arrays, found: Arrays, recipe: Recipe) -> Errors:
    """Arrays [T, …]."""
    ids, again = stored["topk_id"], found["topk_id"]  # [T, k]
    value, value_again = stored["topk_logprob"].astype(float), found["topk_logprob"].astype(float)
    match, match_again = looked_up(ids, again, value_again), looked_up(again, ids, value)  # [T, k] NaN: not there
    errors = {"topk_logprob": both_ways(value, match, value_again[:, -1:], value_again, match_again, value[:, -1:])}
    scale = 1 / np.array(recipe.temperatures)
    moved = np.isnan(match).sum(1)[:, None] * np.exp(np.maximum(value, value_again)[:, -1:] * scale)  # [T, n_T]
    for name in ("tail_logmass", "tail_logmass_seen"):
        errors[name] = tail_errors(stored[name].astype(float), found[name].astype(float), moved)
    kl = []
    for index, power in enumerate(scale):
        rest, rest_again = (
            np.exp(arrays["tail_logmass"][:, index].astype(float))
            + np.where(np.isnan(m), np.exp(v * power), 0.0).sum(1)
            for arrays, m, v in ((stored, match, value), (found, match_again, value_again))
        )  # [T]
        kl.append(bucketed_kl(value * power, match * power, rest, rest_again))
    return errors | {"kl": np.stack(kl), "topk_id": np.isnan(match).astype(float)}


def tail_errors(tail: NDArray, tail_again: NDArray, moved: NDArray) -> NDArray[np.float64]:
    """How far apart the log masses are when up to a mass `moved` went from the kept tokens into the tail, or back."""
    low, high = np.log(np.maximum(np.exp(tail) - moved, 0.0)), np.log(np.exp(tail) + moved)
    apart = np.maximum(np.maximum(low - tail_again, tail_again - high), 0.0)
    return np.where(tail == tail_again, 0.0, apart)


def sample_errors(stored: Arrays, found: Arrays, logprob: NDArray, recipe: Recipe) -> Errors:
    """Arrays [T, …]; `logprob` [T, n_T, k] are the log-probabilities that the teacher now gives to the stored ids."""
    k = recipe.top_k
    ids, again = (arrays["sample_id"].reshape(-1, k) for arrays in (stored, found))  # [T · n_T, k]
    value, value_again = (arrays["sample_logweight"].reshape(-1, k).astype(float) for arrays in (stored, found))
    certain, certain_again = certain_slots(value, k), certain_slots(value_again, k)
    drawn = (ids >= 0) & ~certain
    match = looked_up(np.where(certain, ids, -1), np.where(certain_again, again, -1), value_again)
    match_again = looked_up(np.where(certain_again, again, -1), np.where(certain, ids, -1), value)
    highest, highest_again = (
        np.minimum(v[:, :1], -math.log(k)) for v in (value, value_again)
    )  # of what is not certain
    weights = both_ways(value, match, highest_again, value_again, match_again, highest)
    errors = {"sample_logweight": weights[np.concatenate([certain, certain_again])]}
    for name in ("entropy", "entropy_seen"):
        errors[name] = np.abs(stored[name].astype(float) - found[name].astype(float))
    rest, rest_again = (
        np.maximum(1 - np.where(np.isnan(m), 0.0, np.exp(v)).sum(1), HALF)
        for m, v in ((match, value), (match_again, value_again))
    )
    errors["kl"] = bucketed_kl(value, match, rest, rest_again)
    errors["certain_id"] = np.isnan(match)[certain].astype(float)
    errors["drawn_id"] = np.isnan(looked_up(ids, again, value_again))[drawn].astype(float)
    others = np.where(certain_again, value_again, -np.inf)
    errors["drawn_logprob"] = drawn_bias(logprob.reshape(-1, k), drawn, found["entropy"].reshape(-1), others)
    return errors


def drawn_bias(
    logprob: NDArray, drawn: NDArray[np.bool_], entropy: NDArray, certain: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[1] how far the mean log-probability of the drawn tokens lies from what it should be, beyond six standard
    errors; empty where nothing is drawn.

    Which tokens are drawn depends on the last bits of many probabilities, their mean does not: a token is drawn in
    proportion to its p, so that of those that are not certain it should be Σ p log p / Σ p, which entropy [T] and the
    log-probabilities of the certain [T, k] (−∞ in other slots) give. `logprob` and `drawn` [T, k].
    """
    certain_terms = (np.exp(certain) * np.where(certain > -np.inf, certain, 0.0)).sum(1)
    expected = -(entropy + certain_terms) / np.maximum(1 - np.exp(certain).sum(1), HALF)  # [T]
    deviation = (logprob - expected[:, None])[drawn].astype(float)
    if not len(deviation):
        return deviation
    error = max(deviation.std(), LEAST_DEVIATION) / math.sqrt(len(deviation))
    return np.maximum(np.abs(deviation.mean(keepdims=True)) - 6 * error, 0.0)


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


def certain_slots(logweight: NDArray[np.float64], k: int) -> NDArray[np.bool_]:
    """[T, k] which slots hold tokens that stand for their own probability: the first, and where that is not below
    τ = 1 / k, all above τ."""
    threshold = float(np.float16(-math.log(k)))
    certain = (logweight > threshold) & (logweight[:, :1] >= threshold)
    certain[:, 0] = True
    return certain


def map_angles(stored: NDArray[np.uint8], found: NDArray[np.uint8], length: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Codes [R, layers, m, m] → the angles of all rows of blocks in use, flat."""
    size = stored.shape[-1]
    has_map = rows_with_map(stored)
    used = np.arange(size) < length[has_map, None]  # [R', m]
    unit, unit_again = (
        rows / np.linalg.norm(rows, axis=-1, keepdims=True)
        for rows in (codes[has_map].swapaxes(1, 2)[used].astype(float) for codes in (stored, found))
    )  # [R' · blocks, layers, m]
    return 2 * np.arcsin(np.linalg.norm(unit - unit_again, axis=-1) / 2)
