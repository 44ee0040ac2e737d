"""A batch holds what was stored of its rows, cut to the longest, and padding never becomes a target."""

import numpy as np
import torch
from helpers.attention import queries_of, stored_of_row

from cache_tools import Cache
from comet.train.dataset import CacheRows, collate, shards_of

NAMES = (
    "input_ids", "length", "target_position", "target_id", "row_key", "topk_id", "topk_logprob", "tail_logmass",
    "attention_gap", "attention_weight",
)  # fmt: skip


def test_every_target_of_a_batch_is_a_masked_ordinary_token(cache: Cache) -> None:
    rows = CacheRows(shards_of([cache], "train"), NAMES)
    arrays = rows.__getitems__(list(range(20)))
    batch = collate(arrays, cache.recipe)
    recipe = cache.recipe
    assert (batch["target_position"] < batch["length"][batch["target_row"]]).all()
    assert not torch.isin(batch["target_id"], torch.tensor(recipe.special_ids)).any()
    assert len(batch["target_id"]) == (arrays["target_id"] >= 0).sum()
    assert torch.isfinite(batch["topk_logprob"]).all()
    assert (batch["topk_id"] >= 0).all()
    seen = batch["input_ids"][batch["target_row"], batch["target_position"]]
    assert 0.6 < (seen == recipe.mask_id).float().mean() < 0.95


def test_collation_cuts_padding_off_and_nothing_else(cache: Cache) -> None:
    rows = CacheRows(shards_of([cache], "train"), NAMES)
    arrays = rows.__getitems__(list(range(len(rows))))
    short = int(np.argmin(arrays["length"]))
    assert arrays["length"][short] < cache.recipe.seq_len, "the test needs a row that is not full"
    batch = collate({name: array[short : short + 1] for name, array in arrays.items()}, cache.recipe)
    assert batch["input_ids"].shape[1] == arrays["length"][short]
    np.testing.assert_array_equal(batch["input_ids"][0], arrays["input_ids"][short, : arrays["length"][short]])


def test_a_batch_holds_the_queries_of_its_rows_and_their_keys(cache: Cache) -> None:
    rows, recipe = CacheRows(shards_of([cache], "train"), NAMES), cache.recipe
    chosen = [1, int(np.argmin(rows.__getitems__(range(len(rows)))["length"])), 2, 0]
    arrays = rows.__getitems__(chosen)
    batch = collate(arrays, recipe)
    query, key, weight = (batch[f"attention_{name}"] for name in ("query", "key", "weight"))
    slots = -(-int(arrays["length"].max()) // recipe.attention_queries)
    assert query.shape == (4, len(recipe.attention_layers), slots)
    assert key.shape == weight.shape == (*query.shape, recipe.attention_keys)
    for row, n in enumerate(arrays["length"].tolist()):
        for index, layer in enumerate(recipe.attention_layers):
            at = queries_of(int(arrays["row_key"][row]), layer, n, recipe.attention_queries)
            assert query[row, index].tolist() == at + [0] * (slots - len(at))
            assert (weight[row, index, len(at) :] == 0).all()
            torch.testing.assert_close(weight[row, index, : len(at)].sum(-1), torch.ones(len(at)))
        for stored, found in zip(stored_of_row(arrays, row, recipe), key[row], strict=True):
            for keys, of_query in zip(stored, found.tolist(), strict=False):
                assert of_query[: len(keys)] == sorted(keys)
    assert weight[1].sum() < weight[0].sum(), "a short row has fewer queries"


def test_a_batch_read_without_attention_has_none(cache: Cache) -> None:
    rows = CacheRows(shards_of([cache], "train"), ("input_ids", "length", "target_position", "target_id"))
    assert not [name for name in collate(rows.__getitems__([0, 1]), cache.recipe) if name.startswith("attention")]
