"""The rows that a start is computed from: as many as the recipe says, each once, and of few shards."""

from dataclasses import replace

import numpy as np
from helpers.small_caches import random_shard, small_recipe
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cache_tools.build.start import ROWS_AT_ONCE, SHARDS, start_batches


@given(train_rows=st.integers(1, 300), wanted=st.integers(1, 300), rows_per_shard=st.integers(1, 70))
def test_they_are_as_many_as_the_recipe_says_and_spread(train_rows: int, wanted: int, rows_per_shard: int) -> None:
    recipe = replace(
        small_recipe(), train_rows=train_rows, start_rows=min(wanted, train_rows), rows_per_shard=rows_per_shard
    )
    one_row = {name: array[:1] for name, array in random_shard(small_recipe(), "train", 0).items()}
    read: list[int] = []

    def read_tokens(shard: int) -> dict[str, NDArray]:
        """Return rows that each have the row's number as their first token."""
        read.append(shard)
        rows = recipe.shard_rows("train", shard)
        tokens = {name: np.repeat(array, rows, axis=0) for name, array in one_row.items()}
        tokens["input_ids"][:, 0] = shard * rows_per_shard + np.arange(rows)
        return tokens

    batches = list(start_batches(recipe, read_tokens))
    numbers = [int(number) for batch in batches for number in batch.input_ids[:, 0]]
    assert len(numbers) == recipe.start_rows and numbers == sorted(set(numbers))
    assert all(len(batch.length) <= ROWS_AT_ONCE for batch in batches)
    assert read == sorted(set(read)) and len(read) <= max(SHARDS, -(-recipe.start_rows // rows_per_shard))
    gaps = np.diff([-1, *read, recipe.shards("train")])
    assert gaps.max() <= 2 * recipe.shards("train") / len(read) + 1, "none is much larger than their mean"
