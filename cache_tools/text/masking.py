"""Packed token rows → masked views. Pure, and the same on every machine.

The mask of a row depends only on the row's own tokens, the seed and the view.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_tools.signals import UNUSED_ID, UNUSED_POSITION
from cache_tools.text.draws import ACTION, PERMUTE, REPLACE, mix, uniform

KEEP_SHARE, MASK_SHARE = 0.1, 0.8  # BERT's masking (Devlin et al. 2019); the remaining 0.1 is replaced at random


def content_keys(tokens: NDArray[np.int32], length: NDArray[np.uint16]) -> NDArray[np.uint64]:
    """Return [R] uint64: 64 bits of SHA-256 of each row's tokens before padding, as little-endian int32."""
    digests = [hashlib.sha256(t[:n].astype("<i4").tobytes()).digest() for t, n in zip(tokens, length, strict=True)]
    return np.array([int.from_bytes(d[:8], "little") for d in digests], dtype=np.uint64)


def row_keys(content: NDArray[np.uint64], view: int) -> NDArray[np.uint64]:
    """Return [R] uint64: `row_key` of the rows with these content keys in this view."""
    return mix(content, np.uint64(view))


@dataclass(frozen=True)
class Masking:
    """How rows are masked. `seen` are the ids for random replacements, ascending int32."""

    mask_prob: float
    seed: int
    mask_id: int
    special_ids: tuple[int, ...]
    seen: NDArray[np.int32]


@dataclass(frozen=True)
class MaskedRows:
    """Rows as the teacher's input; the arrays of one view, named and shaped as in the cache."""

    input_ids: NDArray[np.int32]  # [R, L]
    length: NDArray[np.uint16]  # [R]
    target_position: NDArray[np.uint16]  # [R, M], unused slots UNUSED_POSITION
    target_id: NDArray[np.int32]  # [R, M], unused slots UNUSED_ID
    row_key: NDArray[np.uint64]  # [R]


def max_targets(seq_len: int, mask_prob: float) -> int:
    """Return M, the number of targets of a full row."""
    return targets_of(np.array(seq_len - 2), mask_prob).item()


def targets_of(maskable: NDArray[np.int64], mask_prob: float) -> NDArray[np.int64]:
    """Return how many of `maskable` positions are masked in one view: the nearest whole number, at least one."""
    return np.minimum(np.maximum(1, np.rint(maskable * mask_prob).astype(np.int64)), maskable)


def unmasked(arrays: Mapping[str, NDArray]) -> NDArray[np.int32]:
    """Return the tokens [R, L] that rows held before `mask_rows`, from their arrays by name."""
    tokens: NDArray[np.int32] = np.array(arrays["input_ids"])
    row, slot = np.nonzero(arrays["target_position"] != UNUSED_POSITION)
    tokens[row, arrays["target_position"][row, slot]] = arrays["target_id"][row, slot]
    return tokens


def mask_rows(tokens: NDArray[np.int32], length: NDArray[np.uint16], view: int, masking: Masking) -> MaskedRows:
    """Mask rows [R, L] for one view.

    The maskable positions of a row are permuted and view v takes the v-th slice; after the last slice a new permutation
    begins. So no position is masked twice before every one was masked once. The last slice of a permutation is shorter
    if the division leaves a remainder.
    """
    rows, seq_len = tokens.shape
    inside = np.arange(seq_len) < length[:, None]  # [R, L]
    maskable = inside & ~np.isin(tokens, masking.special_ids)  # [R, L]
    available = maskable.sum(1)  # [R]
    wanted = targets_of(available, masking.mask_prob)
    slices = -(-available // np.maximum(wanted, 1))  # views until every position of the row was masked
    cycle, turn = np.divmod(view, np.maximum(slices, 1))

    content = content_keys(tokens, length)
    seeded = mix(content, np.uint64(masking.seed))[:, None]  # [R, 1]
    counter = np.arange(seq_len, dtype=np.uint64)[None, :]

    order = mix(mix(mix(seeded, PERMUTE), cycle.astype(np.uint64)[:, None]), counter)
    order = np.where(maskable, order >> np.uint64(1), np.uint64(2**64 - 1))  # positions that are not maskable come last
    rank = np.argsort(np.argsort(order, axis=1, kind="stable"), axis=1, kind="stable")  # [R, L]
    start = turn * wanted
    target = maskable & (rank >= start[:, None]) & (rank < (start + wanted)[:, None])  # [R, L]

    drawn = mix(mix(mix(seeded, ACTION), np.uint64(view)), counter)
    action = uniform(drawn)
    chosen = mix(mix(mix(seeded, REPLACE), np.uint64(view)), counter)
    replacement = masking.seen[(uniform(chosen) * len(masking.seen)).astype(np.int64)]
    input_ids = np.where(target & (action < MASK_SHARE), np.int32(masking.mask_id), tokens)
    input_ids = np.where(target & (action >= MASK_SHARE + KEEP_SHARE), replacement, input_ids)

    slots = max_targets(seq_len, masking.mask_prob)
    position = np.full((rows, slots), UNUSED_POSITION, dtype=np.uint16)
    target_id = np.full((rows, slots), UNUSED_ID, dtype=np.int32)
    row, column = np.nonzero(target)  # row-major: positions ascend within a row
    slot = (np.cumsum(target, axis=1) - 1)[row, column]
    position[row, slot] = column
    target_id[row, slot] = tokens[row, column]
    return MaskedRows(input_ids, length, position, target_id, row_keys(content, view))
