"""Find text that one cache holds out for validation and another one trains on: each cache is split on its own, and by
another share if their options differ.

The text is compared without its masks, by 64-bit hashes of every 16 tokens in a row of a document, or of all tokens of
a shorter one.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cache_tools.errors import CometError
from cache_tools.progress import show_progress
from cache_tools.store.reader import Cache
from cache_tools.text.draws import mix
from cache_tools.text.masking import unmasked

RUN = 16  # tokens in a row that two different texts hardly share: about eight words
SHORTEST = 5  # tokens; shorter documents are phrases that any text may have
MOST_SHARED = 0.01  # of the runs of a validation: less is reported, more is refused
MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that it has an inverse
INVERSE = pow(MULTIPLIER, -1, 2**64)
FILTER_BITS = 24
ARRAYS = ("input_ids", "length", "target_position", "target_id")


def require_other_text(caches: Sequence[Cache]) -> None:
    """Raise CometError if one cache trains on text that another holds out for validation; print a line instead if that
    is less than MOST_SHARED of the validation."""
    if len(caches) < 2:
        return
    held_out = [_distinct(cache, "validation") for cache in caches]
    found = [np.zeros(len(runs), dtype=np.bool_) for runs in held_out]
    likely = [_leading_bits_of(runs) for runs in held_out]
    for trained in caches:
        for hashes in _runs(trained, "train"):
            for cache, runs, filter_, seen in zip(caches, held_out, likely, found, strict=True):
                if cache is not trained and len(runs):
                    some = hashes[filter_[hashes >> np.uint64(64 - FILTER_BITS)]]
                    place = np.minimum(np.searchsorted(runs, some), len(runs) - 1)
                    seen[place[runs[place] == some]] = True
    for cache, seen in zip(caches, found, strict=True):
        if not seen.any():
            continue
        share = float(seen.mean())
        others = ", ".join(other.name for other in caches if other is not cache)
        much = f"{share:.1%}" if share >= 0.001 else "less than 0.1%"
        said = f"{much} of the text that {cache.name} holds out for validation is trained on in {others}"
        if share >= MOST_SHARED:
            raise CometError(
                f"--cache {cache.name}: {said}, so that a student would be measured on what it has learnt by heart. "
                "Caches of one text must be split alike: train on one of them, or build one of all the texts",
                exit_code=2,
            )
        tqdm.write(said)


def _distinct(cache: Cache, group: str) -> NDArray[np.uint64]:
    """Return the distinct hashes of a group; those of each shard first, as a small file may repeat itself at length."""
    return np.unique(np.concatenate([np.zeros(0, dtype=np.uint64), *map(np.unique, _runs(cache, group))]))


def _leading_bits_of(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return [2^FILTER_BITS] whether any hash begins with these bits; it spares most look-ups of the others."""
    likely = np.zeros(2**FILTER_BITS, dtype=np.bool_)
    likely[hashes >> np.uint64(64 - FILTER_BITS)] = True
    return likely


def _runs(cache: Cache, group: str) -> Iterator[NDArray[np.uint64]]:
    """Yield the hashes of the runs in each shard of a group, as far as it holds rows of the first view: the others
    repeat them, or hold what the teacher made of them."""
    recipe = cache.recipe
    first_view = recipe.rows(group) // recipe.views
    shards = [shard for shard in cache.extent.indices(group) if shard * recipe.rows_per_shard < first_view]
    code = mix(np.arange(recipe.vocab_size, dtype=np.uint64), np.uint64(0))  # [V]
    for shard in show_progress(shards, f"compare {group}", "shard", leave=False):
        arrays = cache.read_shard(group, shard, ARRAYS)
        rows = min(len(arrays["length"]), first_view - shard * recipe.rows_per_shard)
        tokens = unmasked(arrays)[:rows]  # [R, L]
        yield run_hashes(tokens, arrays["length"][:rows], code, (recipe.bos_id, recipe.eos_id))


def run_hashes(
    tokens: NDArray[np.int32], length: NDArray[np.uint16], code: NDArray[np.uint64], separators: tuple[int, ...]
) -> NDArray[np.uint64]:
    """Return a hash of every RUN tokens in a row between separators, and of all tokens between two that are fewer, but
    at least SHORTEST. `tokens` [R, L] of which each row uses `length` [R]; `code` [V] 64 random bits of each token.

    A run's hash is Σ code · m^i over its tokens, i counted from its first: a difference of prefix sums.
    """
    inside = np.arange(tokens.shape[1]) < length[:, None]
    ends = (np.isin(tokens, separators) | ~inside).ravel()
    power, inverse = _powers(MULTIPLIER, ends.size + 1), _powers(INVERSE, ends.size + 1)
    with np.errstate(over="ignore"):
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(code[tokens.ravel() * inside.ravel()] * power[:-1])])
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(ends)])  # separators before each position
        first = np.flatnonzero(starts[RUN:] == starts[:-RUN]) if ends.size >= RUN else np.zeros(0, np.int64)
        edge = np.flatnonzero(ends)
        size = np.diff(edge) - 1
        short = (size >= SHORTEST) & (size < RUN)
        begin = np.concatenate([first, edge[:-1][short] + 1])
        end = np.concatenate([first + RUN, edge[1:][short]])
        return (sums[end] - sums[begin]) * inverse[begin]


@lru_cache(maxsize=4)
def _powers(base: int, count: int) -> NDArray[np.uint64]:
    """Return the first powers of a number, mod 2^64."""
    factors = np.full(count, base, dtype=np.uint64)
    factors[0] = 1
    with np.errstate(over="ignore"):
        return np.multiply.accumulate(factors)
