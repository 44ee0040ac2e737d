"""What must hold before anyone computes with the values of a shard. Pure functions on arrays; values.py has the rest.

`check_ranges` keeps every index inside what it indexes, `check_signals` every number finite and every token single.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import CometError
from cache_tools.signals import UNUSED_ID, UNUSED_POSITION
from cache_tools.store.layout import rows_with_map
from cache_tools.store.recipe import Recipe

ABOVE_ONE = 2e-3  # what the logarithm of a probability may exceed 0 by, since it was rounded
MINUS_INFINITY = 0xFC00  # float16's bits

Arrays = dict[str, NDArray]

EXPECTED = {
    "target_position": "expected rising positions, found another",
    "target_id": "expected a token, found none",
    "topk_id": "expected different tokens, found one twice or none",
    "topk_logprob": "expected finite log-probabilities, found another number",
    "tail_logmass": "expected a log mass, found NaN or infinity",
    "tail_logmass_seen": "expected a log mass, found NaN or infinity",
    "sample_id": "expected different tokens, each with a weight, found others",
    "sample_logweight": "expected log weights of at most 0, found another number",
    "entropy": "expected a finite number, found another",
    "entropy_seen": "expected a finite number, found another",
}


def check_ranges(arrays: Arrays, recipe: Recipe, where: str) -> None:
    """Raises CometError for ids and positions that nobody may index by, and for maps where none belong."""
    below = {
        "input_ids": (0, recipe.vocab_size),
        "length": (1, recipe.seq_len + 1),
        "target_id": (-1, recipe.vocab_size),
        "topk_id": (-1, recipe.vocab_size),
        "sample_id": (-1, recipe.vocab_size),
    }
    for name, (low, high) in below.items():
        if name in arrays and not (arrays[name].min() >= low and arrays[name].max() < high):
            raise CometError(f"{where}: {name}: a value lies outside {low} to {high - 1}; the cache is damaged")
    if "attention" in arrays:
        has_map = rows_with_map(arrays["attention"])
        if not np.array_equal(has_map, np.arange(len(has_map)) % recipe.attention_every == 0):
            raise CometError(
                f"{where}: attention: expected maps of one row in {recipe.attention_every}, the first row's first; "
                "the cache is damaged"
            )
    if "target_position" in arrays and "length" in arrays:
        position = arrays["target_position"]
        if np.any((position != UNUSED_POSITION) & (position >= arrays["length"][:, None])):
            raise CometError(f"{where}: target_position: a target lies in the padding; the cache is damaged")


def check_signals(arrays: Arrays, where: str) -> None:
    """Raises CometError where a target stands twice or lacks its token, where a token counts twice, and for numbers
    that no loss may be made of: NaN, infinities, probabilities above 1. `arrays` hold target_position, and of the
    others those that are to be looked at."""
    used = arrays["target_position"] != UNUSED_POSITION  # [R, M]
    for name, wrong in wrong_values(arrays, used):
        # counted, since in a sound shard all there is lies in the few slots without a target
        if np.count_nonzero(wrong) != np.count_nonzero(wrong[~used]):
            at_target = wrong & used.reshape(used.shape + (1,) * (wrong.ndim - 2))
            row, slot = (int(index) for index in np.argwhere(at_target)[0][:2])
            raise CometError(f"{where}: {name}: {EXPECTED[name]} at row {row}, target {slot}; the cache is damaged")


def wrong_values(arrays: Arrays, used: NDArray[np.bool_]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Of each array [R, M, …] where it is wrong, if there is a target."""
    position = arrays["target_position"]
    yield "target_position", np.pad((position[:, 1:] <= position[:, :-1]) & used[:, 1:], ((0, 0), (1, 0)))
    if "target_id" in arrays:
        yield "target_id", arrays["target_id"] == UNUSED_ID
    if "topk_id" in arrays:
        yield "topk_id", arrays["topk_id"] == UNUSED_ID
        yield "topk_id", repetitions(arrays["topk_id"])
    if "topk_logprob" in arrays:
        yield "topk_logprob", ~is_logprob(arrays["topk_logprob"])
    for name in ("tail_logmass", "tail_logmass_seen"):
        if name in arrays:
            yield name, np.isnan(arrays[name]) | (arrays[name] == np.inf)  # −∞ where nothing is left
    if "sample_id" in arrays:
        yield "sample_id", repetitions(arrays["sample_id"])
    if "sample_logweight" in arrays:
        nothing = arrays["sample_logweight"].view(np.uint16) == MINUS_INFINITY
        yield "sample_logweight", ~(is_logprob(arrays["sample_logweight"]) | nothing)
        if "sample_id" in arrays:
            yield "sample_id", (arrays["sample_id"] == UNUSED_ID) != nothing
    for name in ("entropy", "entropy_seen"):
        if name in arrays:
            yield name, ~np.isfinite(arrays[name])


def repeated(ids: NDArray[np.int32]) -> NDArray[np.bool_]:
    """[…] whether a token occurs twice among […, k], apart from −1."""
    return np.asarray(repetitions(ids).any(-1))


def repetitions(ids: NDArray[np.int32]) -> NDArray[np.bool_]:
    """[…, k − 1] where among sorted ids one is that before it, apart from −1."""
    ranked = np.sort(ids, axis=-1)
    found: NDArray[np.bool_] = (ranked[..., 1:] == ranked[..., :-1]) & (ranked[..., 1:] >= 0)
    return found


def is_logprob(values: NDArray[np.float16]) -> NDArray[np.bool_]:
    """Which values are finite and at most 0, but for rounding. On their bits, as numpy's own float16 is slow.

    The sign is the highest bit; the others order numbers of one sign, from 0 to ∞, and then NaN.
    """
    bits = values.view(np.uint16)
    most = np.float16(ABOVE_ONE).view(np.uint16)
    found: NDArray[np.bool_] = (bits <= most) | ((bits >= 0x8000) & (bits < MINUS_INFINITY))
    return found
