"""Measures for fidelity.py: batches of targets, angles between gradients, bytes as the cache packs them."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cache_tools import Cache
from cache_tools.store.layout import ArraySpec, encode_chunk
from comet.train.dataset import CacheRows, collate, shards_of

ROWS_AT_ONCE = 16
Batch = dict[str, Tensor]


def validation_batches(cache: Cache, targets: int) -> Iterator[Batch]:
    """Rows until there are so many targets, a few at a time; the last targets too many are left out."""
    rows = CacheRows(shards_of([cache], "validation"), list(cache.extent.arrays))
    for begin in range(0, len(rows), ROWS_AT_ONCE):
        batch = collate(rows.__getitems__(range(len(rows))[begin : begin + ROWS_AT_ONCE]), cache.recipe)
        of_targets = ("target_row", "target_position", "target_id")
        batch |= {name: batch[name][:targets] for name in of_targets}
        yield batch
        targets -= len(batch["target_id"])
        if not targets:
            return
    raise SystemExit(f"the validation rows hold {targets} targets too few; give more lines")


def angle(a: Tensor, b: Tensor) -> float:
    """Degrees between two vectors, in a form that is exact for small angles."""
    a, b = a.double() / a.double().norm(), b.double() / b.double().norm()
    return math.degrees(2 * math.atan2((a - b).norm().item(), (a + b).norm().item()))


def bytes_per_position(arrays: list[dict[str, NDArray]], targets: int) -> float:
    """As the cache's codec packs them, all targets in one chunk; with as many slots as the fullest portion needs."""
    total = 0
    for name in arrays[0]:
        width = max(part[name].shape[-1] for part in arrays)
        parts = [part[name] for part in arrays]
        unused = -1 if name.endswith("id") else -np.inf if parts[0].dtype.kind == "f" else 0
        if parts[0].ndim > 1:
            slots = [[(0, 0)] * (part.ndim - 1) + [(0, width - part.shape[-1])] for part in parts]
            parts = [np.pad(part, pad, constant_values=unused) for part, pad in zip(parts, slots, strict=True)]
        whole = np.concatenate(parts)
        spec = ArraySpec(name, whole.shape, whole.shape, whole.dtype, 0, ("target",) * whole.ndim)
        total += len(encode_chunk(spec, whole))
    return total / targets
