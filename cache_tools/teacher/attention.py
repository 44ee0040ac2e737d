"""The signal `attention`: pooled maps of some layers, of every n-th row."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cache_tools.attention import to_codes
from cache_tools.store.layout import rows_with_map
from cache_tools.store.recipe import Recipe
from cache_tools.teacher.comparison import Arrays, Errors
from cache_tools.teacher.head import BlockedHead
from cache_tools.teacher.model import Observation


@dataclass(frozen=True)
class PooledAttention:
    """Compute and compare the array `attention`."""

    recipe: Recipe

    def compute(self, observed: Observation, head: BlockedHead) -> dict[str, Tensor]:
        return {"attention": to_codes(observed.capture.maps())}

    def recompute(self, stored: Arrays, features: Tensor, head: BlockedHead) -> dict[str, Tensor]:
        return {}

    def compare(self, stored: Arrays, found: Arrays) -> Errors:
        """Return the angles in radians between the rows of two maps of codes [R, layers, m, m], of blocks in use, flat.

        Codes are the roots of attention, so a row of them has length 1.
        """
        has_map = rows_with_map(stored["attention"])
        used = np.arange(self.recipe.attention_size) < stored["length"][has_map, None]  # [R', m]
        unit, unit_again = (
            rows / np.linalg.norm(rows, axis=-1, keepdims=True)
            for rows in (run["attention"][has_map].swapaxes(1, 2)[used].astype(float) for run in (stored, found))
        )  # [R' · blocks, layers, m]
        return {"attention": 2 * np.arcsin(np.linalg.norm(unit - unit_again, axis=-1) / 2)}
