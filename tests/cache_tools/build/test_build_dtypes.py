"""bfloat16 and float16 teachers give the float32 cache within what their numbers can hold."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.settings import build_settings
from numpy.typing import NDArray

from cache_tools import Cache, build_cache
from cache_tools.attention import decode_keys

SEQ_LEN = 128
KINDS = (("attention_gap", np.int64), ("attention_weight", np.uint8))


@pytest.fixture(scope="module")
def built(sample_teacher: Path, sample_text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cache]:
    folder = tmp_path_factory.mktemp("dtypes")
    signals = {"keep": "topk", "attention_layers": "all", "attention_queries": 1, "attention_keys": 128}
    settings = build_settings(folder, sample_teacher, sample_text, seq_len=SEQ_LEN, **signals)
    return {
        dtype: build_cache(replace(settings, out=folder / f"{dtype}.zarr", dtype=dtype))
        for dtype in ("float32", "bfloat16", "float16")
    }


def whole_rows(arrays: dict[str, NDArray]) -> torch.Tensor:
    """[R, layers, S, L]: of every query all keys are kept."""
    gap, code = (torch.from_numpy(arrays[name].astype(dtype)) for name, dtype in KINDS)
    key, weight = decode_keys(gap, code, SEQ_LEN)
    return weight.new_zeros(*weight.shape[:3], SEQ_LEN).scatter_add(3, key, weight)


@pytest.mark.parametrize(("dtype", "nats", "row_error"), [("bfloat16", 0.15, 0.02), ("float16", 0.03, 0.004)])
def test_lower_precision_stays_near_float32(built: dict[str, Cache], dtype: str, nats: float, row_error: float) -> None:
    exact, rounded = (built[name].read_shard("train", 0) for name in ("float32", dtype))
    used = exact["target_id"] >= 0
    assert (exact["topk_id"][used][:, 0] == rounded["topk_id"][used][:, 0]).mean() > 0.93
    best = (exact["topk_logprob"][used][:, 0].astype(float), rounded["topk_logprob"][used][:, 0].astype(float))
    assert np.abs(best[0] - best[1]).mean() < nats
    assert np.abs(exact["tail_logmass"][used] - rounded["tail_logmass"][used]).mean() < nats
    rows, exact_rows = (whole_rows(arrays) for arrays in (rounded, exact))
    assert (rows - exact_rows).abs().max() < row_error * 10
    assert (rows - exact_rows).abs().mean() < row_error


def test_the_commit_records_say_what_was_computed_in(built: dict[str, Cache]) -> None:
    for dtype, cache in built.items():
        record = cache.record("train", 0)
        assert record is not None
        assert record.numerics["dtype"] == dtype
    assert len({cache.recipe.recipe_id for cache in built.values()}) == 1, "the dtype is not part of the recipe"
