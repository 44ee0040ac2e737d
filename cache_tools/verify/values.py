"""Relations between the values of a sound cache. Pure functions on arrays; each yields errors in words.

Bounds allow for the format's rounding: float16 to 2⁻¹¹ of a value, tails and entropies to 1/1024.
"""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from cache_tools.signals import (
    ARRAYS,
    HALF,
    NATS_STEP,
    THRESHOLD,
    TOKEN_ARRAYS,
    TOPK,
    UNUSED_POSITION,
    WEIGHT_STEPS,
    kept_signals,
    require_declared,
)
from cache_tools.store.bounds import Arrays, check_signals, repeated
from cache_tools.store.reader import Vocabulary
from cache_tools.store.recipe import Recipe
from cache_tools.text.masking import Masking, mask_rows, unmasked

REMASKED_AT_ONCE = 2**18  # positions, at some hundred bytes each
MASS = 2e-3  # largest deviation of kept and tail mass from 1


def _first(wrong: NDArray[np.bool_]) -> str:
    """Return the row (and position) of the first of some wrong values [R] or [R, L], and their number."""
    indices = np.argwhere(wrong)
    names = ("row", "position")
    return " ".join(f"{n} {i}" for n, i in zip(names, indices[0], strict=False)) + f" (of {len(indices)})"


def _token_errors(arrays: Arrays, recipe: Recipe, group: str, shard: int, seen: NDArray[np.int32]) -> Iterator[str]:
    """Check that rows are `bos … eos` and padding, with the masks that seed, view and tokens determine."""
    rows, at_once = len(arrays["length"]), max(REMASKED_AT_ONCE // recipe.seq_len, 1)
    wrong: dict[str, NDArray[np.bool_]] = {}  # by what is wrong, which rows are [R]
    for start in range(0, rows, at_once):
        here = slice(start, start + at_once)
        view = (shard * recipe.rows_per_shard + np.arange(rows)[here]) // (recipe.rows(group) // recipe.views)
        part = {name: arrays[name][here] for name in TOKEN_ARRAYS}
        for fault, found in _faulty_rows(part, recipe, view, seen):
            wrong.setdefault(fault, np.zeros(rows, dtype=bool))[here] |= found
    for fault, found in wrong.items():
        if found.any():
            yield f"{fault} at {_first(found)}"


def _faulty_rows(
    arrays: Arrays, recipe: Recipe, view: NDArray, seen: NDArray[np.int32]
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield what may be wrong, and with which of these rows [R] it is; `view` is that of each.

    The rows are unmasked and masked again, which proves positions, labels, replacements and row keys.
    """
    length = arrays["length"].astype(np.int64)  # [R]
    tokens = unmasked(arrays)  # [R, L]
    is_wrong = (np.arange(recipe.seq_len) >= length[:, None]) & (tokens != recipe.pad_id)
    yield f"input_ids: expected {recipe.pad_id} in the padding, found another id", is_wrong.any(1)
    is_wrong = (tokens[:, 0] != recipe.bos_id) | (tokens[np.arange(len(tokens)), length - 1] != recipe.eos_id)
    yield f"input_ids: expected rows from {recipe.bos_id} to {recipe.eos_id}, found others", is_wrong
    masking = Masking(recipe.mask_prob, recipe.seed, recipe.mask_id, recipe.special_ids, seen)
    for number in np.unique(view):
        chosen = view == number
        expected = mask_rows(tokens[chosen], arrays["length"][chosen], int(number), masking)
        for name in TOKEN_ARRAYS:
            is_wrong = np.zeros(len(view), dtype=bool)
            differs = arrays[name][chosen] != getattr(expected, name)
            is_wrong[chosen] = differs.reshape(chosen.sum(), -1).any(1)
            yield f"{name}: differs from the masking of view {number}", is_wrong


def _table_errors(arrays: Arrays, names: Iterable[str]) -> Iterator[str]:
    """Check that unused targets hold the fill value."""
    is_unused = arrays["target_position"] == UNUSED_POSITION  # [R, M]
    for name in names:
        fill = ARRAYS[name].fill
        if "target" in ARRAYS[name].axes:
            unused = arrays[name][is_unused]
            wrong = ~np.isnan(unused) if np.isnan(fill) else unused != fill
            if np.any(wrong):
                yield f"{name}: {np.count_nonzero(wrong)} values where there is no target"


def _topk_errors(arrays: Arrays, recipe: Recipe) -> Iterator[str]:
    """Check that the top k are different tokens, best first, that their mass and the tail's make 1, and tail bounds.

    With tail mass m over n tokens, none above the smallest kept probability q, Σ p^a (a = 1 / T) is for a < 1 at least
    m q^(a−1) and at most n (m/n)^a, reached if all are equal (Jensen); for a > 1 the other way round.
    """
    used = arrays["target_position"] != UNUSED_POSITION  # [R, M]
    ids, logprob, tail, tail_seen = (arrays[name][used] for name in TOPK.arrays)  # [T, k], [T, k], [T, n_T], [T, n_T]
    logprob, tail, tail_seen = (values.astype(np.float64) for values in (logprob, tail, tail_seen))
    if np.any(wrong := (ids < 0).any(1) | repeated(ids)):
        yield f"topk_id: expected {recipe.top_k} different tokens at each target, found others at {wrong.sum()} targets"
    if np.any(wrong := ~((logprob <= MASS) & np.isfinite(logprob)).all(1) | (np.diff(logprob, axis=1) > 0).any(1)):
        yield f"topk_logprob: expected falling log-probabilities, found others at {wrong.sum()} targets"
        return
    if np.isnan(tail).any() or np.isnan(tail_seen).any():
        yield "tail_logmass: NaN at a target"
        return
    if np.any(wrong := tail_seen > tail + NATS_STEP):
        yield f"tail_logmass_seen: more than tail_logmass {wrong.sum()} times"
    others = recipe.vocab_size - recipe.top_k
    kept = np.exp(logprob).sum(1)
    rounding = (np.exp(logprob) * np.abs(logprob) * HALF).sum(1)
    with np.errstate(divide="ignore"):
        if 1.0 in recipe.temperatures:
            at_one = tail[:, recipe.temperatures.index(1.0)]
            if np.any(wrong := np.abs(kept + np.exp(at_one) - 1) > MASS + rounding):
                yield f"tail_logmass: expected kept and tail mass to make 1, found others at {wrong.sum()} targets"
            low, high = at_one - NATS_STEP, at_one + NATS_STEP
        else:
            low = np.log(np.clip(1 - kept - MASS - rounding, 0, None))
            high = np.log(np.clip(1 - kept + MASS + rounding, 0, None))
    largest = logprob[:, -1] * (1 - HALF)  # of a tail token, log
    for index, temperature in enumerate(recipe.temperatures):
        power = 1 / temperature
        equal = np.log(max(others, 1)) * (1 - power)
        bounds = [(equal + power * mass, mass + (power - 1) * largest) for mass in (low, high)]
        smallest, most = (bounds[0][1], bounds[1][0]) if power < 1 else (bounds[0][0], bounds[1][1])
        wrong = (tail[:, index] < smallest - 2 * NATS_STEP) | (tail[:, index] > most + 2 * NATS_STEP)
        if not others:  # no token is left for the tail
            wrong = tail[:, index] != -np.inf
        if wrong.any():
            yield f"tail_logmass: at T = {temperature:g} outside the bounds of its mass at {wrong.sum()} targets"


def _sample_errors(arrays: Arrays, recipe: Recipe) -> Iterator[str]:
    """Check that samples are different tokens, in leading slots, of falling weight after the first, that their weights
    make 1 within one draw, and that entropies are between 0 and the logarithm of the number of tokens."""
    used = arrays["target_position"] != UNUSED_POSITION  # [R, M]
    ids, logweight, entropy, entropy_seen = (arrays[name][used] for name in THRESHOLD.arrays)
    logweight = logweight.astype(np.float64)  # as ids [T, n_T, k]; entropies [T, n_T]
    held = ids >= 0  # [T, n_T, k]
    if np.any(wrong := ~held[..., 0] | (np.diff(held.astype(np.int8), axis=-1) > 0).any(-1) | repeated(ids)):
        yield f"sample_id: expected different tokens in the leading slots, found others at {wrong.sum()} targets"
    sound = np.where(held, np.isfinite(logweight) & (logweight <= MASS), logweight == -np.inf).all(-1)
    if not np.all(sound):
        yield f"sample_logweight: expected log weights, −∞ in empty slots, found others at {np.sum(~sound)} targets"
        return
    falling = (logweight[..., 2:] <= logweight[..., 1:-1]).all(-1)
    if not np.all(falling):
        yield f"sample_logweight: expected falling weights after the first, found others at {np.sum(~falling)} targets"
    last = np.where(held, logweight, np.inf).min(-1)  # [T, n_T]
    allowed = np.maximum(1 / recipe.top_k, np.exp(last)) + MASS - np.minimum(last, 0) * HALF
    if np.any(wrong := np.abs(np.exp(logweight).sum(-1) - 1) > allowed):
        yield f"sample_logweight: expected weights that make 1 within one draw, found others at {wrong.sum()} targets"
    most = {"entropy": (entropy, recipe.vocab_size), "entropy_seen": (entropy_seen, recipe.seen_size)}
    for name, (values, count) in most.items():
        if np.any(wrong := ~((values >= -NATS_STEP) & (values <= np.log(count) + NATS_STEP))):
            yield f"{name}: expected 0 to log {count}, found others at {wrong.sum()} targets"


def _attention_errors(arrays: Arrays, recipe: Recipe) -> Iterator[str]:
    """Check that certain keys have at least 1/k, unless all keys are kept, and that the weights of a query make 1.

    The error of a code is half a step at most, that of a weight v thus √v / s + 1 / 4s² for s steps, and with Σ v = 1
    over n keys that of the sum √n / s + n / 4s² (Cauchy and Schwarz). Keys with a code of 0 are not kept if all are.
    """
    code, length, k = arrays["attention_weight"], arrays["length"].astype(np.int64), recipe.attention_keys
    is_used = arrays["attention_gap"] < recipe.seq_len  # [R, layers, S, k]
    if np.any(wrong := np.any((code > 0) & ~is_used, axis=(1, 2, 3))):
        yield f"attention_weight: a weight where there is no key at {_first(wrong)}"
    is_drawn, has_all = is_used & (code == 0), (length <= k)[:, None, None, None]
    too_low = (code > 0) & ~has_all & (code < WEIGHT_STEPS * k**-0.5 - 0.5)
    if np.any(wrong := (too_low | (is_drawn & has_all)).any((1, 2, 3))):
        yield f"attention_weight: expected certain keys of at least 1/{k}, found others at {_first(wrong)}"
    total, n = ((code / WEIGHT_STEPS) ** 2).sum(-1), is_used.sum(-1)  # [R, layers, S]
    allowed = np.sqrt(n) / WEIGHT_STEPS + (n + length[:, None, None]) / (4 * WEIGHT_STEPS**2) + 1e-9
    lacking = (total < 1 - allowed) & ~is_drawn.any(-1) & (n > 0)
    if np.any(wrong := ((total > 1 + allowed) | lacking).any((1, 2))):
        yield f"attention_weight: expected the weights of a query to make 1, found others at {_first(wrong)}"


_RELATIONS = {"topk": _topk_errors, "threshold": _sample_errors, "attention": _attention_errors}
"""Checks of signals beyond those of the table."""


def shard_errors(arrays: Arrays, recipe: Recipe, group: str, shard: int, seen: NDArray[np.int32]) -> list[str]:
    """Return all errors in the values of a shard, as far as this copy holds its arrays.

    Raises CometError for an undeclared array, and for an illegal value of a signal that lacks an array.
    """
    where = f"shard {group} {shard}"
    require_declared(arrays, recipe, where)
    errors: list[str] = []
    if arrays.keys() >= set(TOKEN_ARRAYS):
        errors += _token_errors(arrays, recipe, group, shard, seen)
    if "target_position" not in arrays or "length" not in arrays:
        return errors
    for signal in kept_signals(recipe):
        held = [name for name in signal.arrays if name in arrays]
        errors += _table_errors(arrays, held)
        if len(held) == len(signal.arrays) and signal.name in _RELATIONS:
            errors += _RELATIONS[signal.name](arrays, recipe)
        else:
            check_signals({name: arrays[name] for name in ("target_position", *held)}, where)
    return errors


def vocabulary_errors(vocabulary: Vocabulary, recipe: Recipe) -> list[str]:
    """Check that the ids are the recipe's, none of them special. Return the errors."""
    errors = []
    if hashlib.sha256(vocabulary.id.astype("<i4").tobytes()).hexdigest() != recipe.seen_sha256:
        errors.append("vocabulary/id: not the ids of the recipe")
    if np.isin(vocabulary.id, recipe.special_ids).any():
        errors.append("vocabulary/id: a special token is among the ids of the corpus")
    return errors
