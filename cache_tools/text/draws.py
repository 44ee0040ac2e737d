"""Draws that depend on nothing but keys: the same on every machine, in any order, for any part of a cache.

A counter-based hash (SplitMix64, Steele et al. 2014, https://doi.org/10.1145/2714064.2660195). Not numpy's generators:
their streams may change between versions, and the bytes of a cache with them.
"""

import numpy as np
from numpy.typing import NDArray

from cache_tools.signals import UNUSED_POSITION

PERMUTE, ACTION, REPLACE, THRESHOLD = (np.uint64(n) for n in (1, 2, 3, 4))
QUERY, KEY, FILL = (np.uint64(2**63 + n) for n in (5, 6, 7))  # no seed is as large
"""Salts by purpose: draws for different purposes are independent."""


def mix(value: NDArray[np.uint64], salt: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    """Apply SplitMix64's finaliser to `value` xor a multiple of `salt`; any broadcastable shapes."""
    with np.errstate(over="ignore"):
        z = value ^ (salt * np.uint64(0x9E3779B97F4A7C15))
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def uniform(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return the top 53 bits as a number in [0, 1)."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def coarse_uniform(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return the top 32 bits as a number in [0, 1), so that adding it to a whole number is exact."""
    return (bits >> np.uint64(32)).astype(np.float64) * 2.0**-32


def threshold_offsets(row_key: NDArray[np.uint64], target_position: NDArray[np.uint16], seed: int) -> NDArray:
    """Return [R, M] float64 in [0, 1), multiples of 2⁻³²: where `--keep threshold` starts sampling at each target."""
    seeded = mix(mix(row_key, np.uint64(seed)), THRESHOLD)[:, None]
    return coarse_uniform(mix(seeded, target_position.astype(np.uint64)))


def attention_queries(
    row_key: NDArray[np.uint64], length: NDArray, layers: tuple[int, ...], every: int, slots: int
) -> NDArray[np.uint16]:
    """Return [R, layers, slots]: the positions whose attention is kept, ascending, UNUSED_POSITION in unused slots.

    A row of n tokens has S = ⌈n / every⌉ queries, the i-th at ⌊(i + u) n / S⌋, with another u in [0, 1) in each row and
    layer: one in each of S equal parts of the row (a stratified sample), and every position equally often.
    """
    n = length.astype(np.uint64)[:, None, None]
    count = (n + np.uint64(every - 1)) // np.uint64(every)  # [R, 1, 1]
    start = mix(mix(row_key, QUERY)[:, None], np.array(layers, np.uint64)) >> np.uint64(32)  # [R, layers]
    step = np.arange(slots, dtype=np.uint64)
    shifted = (step << np.uint64(32)) + start[..., None]  # (i + u) 2³², below 2⁴⁷
    return np.where(step < count, shifted * n // (count << np.uint64(32)), UNUSED_POSITION).astype(np.uint16)


def key_offsets(row_key: NDArray[np.uint64], layers: tuple[int, ...], slots: int) -> NDArray[np.float64]:
    """Return [R, layers, slots] in [0, 1), multiples of 2⁻³²: where the sampling of each query's keys starts."""
    of_layer = mix(mix(row_key, KEY)[:, None], np.array(layers, np.uint64))  # [R, layers]
    return coarse_uniform(mix(of_layer[..., None], np.arange(slots, dtype=np.uint64)))
