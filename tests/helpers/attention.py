"""Which attention a cache keeps, by definition: plain numbers and loops, as FORMAT.md says it."""

import numpy as np
from numpy.typing import NDArray

from cache_tools.signals import WEIGHT_STEPS
from cache_tools.store.recipe import Recipe

WORD = 2**64 - 1


def mixed(value: int, salt: int) -> int:
    z = ((value ^ (salt * 0x9E3779B97F4A7C15 & WORD)) + 0x9E3779B97F4A7C15) & WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & WORD
    return z ^ (z >> 31)


def queries_of(row_key: int, layer: int, length: int, every: int) -> list[int]:
    count = -(-length // every)
    u = mixed(mixed(row_key, 2**63 + 5), layer) >> 32
    return [(i * 2**32 + u) * length // (count * 2**32) for i in range(count)]


def kept_keys(attention: NDArray[np.float64], k: int, offset: float) -> dict[int, int]:
    """The codes of the keys that are kept of one query's attention [n]."""
    n = len(attention)
    certain = {i: p for i, p in enumerate(attention) if n <= k or p >= 1 / k}
    kept = {i: round(WEIGHT_STEPS * p**0.5) for i, p in certain.items()}
    kept = {i: code for i, code in kept.items() if code}
    rest = {i: p for i, p in enumerate(attention) if i not in certain}
    mass = sum(rest.values())
    if mass > 0:
        draws, running = max(int(mass * k + 2**-20), 1), offset
        for i, p in rest.items():
            before, running = running, running + p * draws / mass
            if int(running) > int(before):
                kept[i] = 0
    return kept


def kept_of_row(attention: NDArray[np.float64], row_key: int, recipe: Recipe) -> list[list[dict[int, int]]]:
    """`kept_keys` of each query in each kept layer, from the whole attention [layers of the teacher, n, n] of a row."""
    kept = []
    for layer in recipe.attention_layers:
        key = mixed(mixed(row_key, 2**63 + 6), layer)
        at = queries_of(row_key, layer, attention.shape[1], recipe.attention_queries)
        offsets = [(mixed(key, slot) >> 32) / 2**32 for slot in range(len(at))]
        kept.append(
            [kept_keys(attention[layer, q], recipe.attention_keys, u) for q, u in zip(at, offsets, strict=True)]
        )
    return kept


def stored_of_row(arrays: dict[str, NDArray], row: int, recipe: Recipe) -> list[list[dict[int, int]]]:
    """The same, of the arrays of a cache."""
    kept, (all_gaps, all_codes) = [], (arrays[name][row].tolist() for name in ("attention_gap", "attention_weight"))
    for gaps, codes in zip(all_gaps, all_codes, strict=True):
        of_layer: list[dict[int, int]] = []
        for slot_gaps, slot_codes in zip(gaps, codes, strict=True):
            position, found = -1, {}
            for gap, code in zip(slot_gaps, slot_codes, strict=True):
                if gap < recipe.seq_len:
                    position += gap + 1
                    found[position] = code
            of_layer.append(found)
        assert not any(of_layer[-(-int(arrays["length"][row]) // recipe.attention_queries) :])
        kept.append([found for found in of_layer if found])
    return kept


def differing_draws(attention: NDArray[np.float64], arrays: dict[str, NDArray], row: int, recipe: Recipe) -> int:
    """How many keys are kept otherwise than by definition, which rounding explains if they are few.

    Codes of the keys that both keep differ by rounding only, or this fails.
    """
    expected = kept_of_row(attention, int(arrays["row_key"][row]), recipe)
    found = stored_of_row(arrays, row, recipe)
    differ = 0
    for of_layer, stored_layer in zip(expected, found, strict=True):
        for keys, stored in zip(of_layer, stored_layer, strict=True):
            differ += len(keys.keys() ^ stored.keys())
            assert all(abs(keys[i] - stored[i]) <= 1 for i in keys.keys() & stored.keys())
    return differ
