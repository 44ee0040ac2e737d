"""The signal `attention`: a few queries of every row, and an unbiased sample of the keys of each.

Of a query's attention p over n keys, those with p ≥ 1/k are kept and stand for p. Of the others, of mass r, m = ⌊r k⌋
(at least one) are drawn, one wherever the running sum of p passes a multiple of r/m, and each stands for r/m
(systematic sampling): a key's expected weight is its p, and the weights of a query sum to 1. If n ≤ k, all keys are
kept.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools.attention import encode_keys, encode_weights
from cache_tools.signals import WEIGHT_STEPS
from cache_tools.store.recipe import Recipe
from cache_tools.teacher.comparison import Arrays, Errors, both_ways, looked_up
from cache_tools.teacher.head import BlockedHead
from cache_tools.teacher.model import Observation

WHOLE = 2.0**-20  # so that a mass of 1 gives k draws, whatever its last bits


def keep_keys(rows: Tensor, length: Tensor, is_query: Tensor, k: int, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys [B, layers, S, k] int64, ascending, −1 in unused slots, and the codes of their weights, uint8.

    `rows` [B, layers, S, L] are rows of attention, `length` [B] their tokens; `is_query` [B, layers, S] bool marks the
    slots in use, `offset` [B, layers, S] float64 in [0, 1) is where the sampling starts. Of a row that is not finite no
    key is kept.
    """
    position = torch.arange(rows.shape[3], device=rows.device)
    n = length[:, None, None, None]
    weight = rows.double().masked_fill(position >= n, 0.0)
    weight = weight / weight.sum(3, keepdim=True)
    is_certain = ((weight >= 1 / k) | (n <= k)) & (position < n)
    light = weight.masked_fill(is_certain, 0.0)
    running = light.cumsum(3)
    rest = running[..., -1:]  # [B, layers, S, 1]
    draws = (rest * k + WHOLE).floor().clamp(min=1)
    share = running / rest.clamp(min=torch.finfo(rest.dtype).tiny)  # [B, layers, S, L], the last exactly 1
    steps = share * draws + offset[..., None]
    is_drawn = torch.diff(steps.floor(), dim=3, prepend=torch.zeros_like(rest)) > 0
    code = encode_weights(weight.nan_to_num(0.0)).masked_fill(~is_certain, 0)
    is_kept = (is_drawn | (code > 0)) & is_query[..., None]
    none = rows.shape[3]
    first = torch.where(is_kept, position, none).sort(3).values[..., :k]
    key = torch.nn.functional.pad(first, (0, k - first.shape[3]), value=none)
    is_unused = key == none
    return key.masked_fill(is_unused, -1), code.gather(3, key.masked_fill(is_unused, 0)).masked_fill(is_unused, 0)


@dataclass(frozen=True)
class SampledAttention:
    """Compute and compare the arrays of `attention`."""

    recipe: Recipe

    def compute(self, observed: Observation, head: BlockedHead) -> dict[str, Tensor]:
        rows, is_query, k = observed.capture.rows(), observed.is_query, self.recipe.attention_keys
        key, code = keep_keys(rows, observed.length, is_query, k, observed.key_offset)
        return {"attention_gap": encode_keys(key, self.recipe.seq_len).to(torch.uint16), "attention_weight": code}

    def recompute(self, stored: Arrays, features: Tensor, head: BlockedHead) -> dict[str, Tensor]:
        return {}

    def compare(self, stored: Arrays, found: Arrays) -> Errors:
        """Return the errors of arrays [R, layers, S, k]: of the square roots of certain weights, and for each stored
        key 1 if it is not found, else 0."""
        k = self.recipe.attention_keys
        (key, code), (again, code_again) = (self._keys(run) for run in (stored, found))  # [Q, k]
        certain, certain_again = code > 0, code_again > 0
        root, root_again = code / WEIGHT_STEPS, code_again / WEIGHT_STEPS
        kept, kept_again = np.where(certain, key, -1), np.where(certain_again, again, -1)
        match, match_again = looked_up(kept, kept_again, root_again), looked_up(kept_again, kept, root)
        highest = np.full((len(key), 1), k**-0.5)  # of a key that is not certain
        roots = both_ways(root, match, highest, root_again, match_again, highest)
        drawn = (key >= 0) & ~certain
        return {
            "attention_weight": roots[np.concatenate([certain, certain_again])],
            "certain_key": np.isnan(match)[certain].astype(float),
            "drawn_key": np.isnan(looked_up(key, again, root_again))[drawn].astype(float),
        }

    def _keys(self, run: Arrays) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Return keys, −1 in unused slots, and codes, both [Q, k]."""
        gap = run["attention_gap"].reshape(-1, self.recipe.attention_keys).astype(np.int64)
        key = np.where(gap < self.recipe.seq_len, (gap + 1).cumsum(1) - 1, -1).astype(np.int32)
        return key, run["attention_weight"].reshape(key.shape)
