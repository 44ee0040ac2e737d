"""bfloat16 and float16 teachers give the float32 cache within what their numbers can hold."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.settings import build_settings

from cache_tools import Cache, build_cache
from cache_tools.attention import from_codes


@pytest.fixture(scope="module")
def built(sample_teacher: Path, sample_text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cache]:
    folder = tmp_path_factory.mktemp("dtypes")
    signals = {"keep": "topk", "attention_layers": "all", "attention_every": 1}
    settings = build_settings(folder, sample_teacher, sample_text, seq_len=128, **signals)
    return {
        dtype: build_cache(replace(settings, out=folder / f"{dtype}.zarr", dtype=dtype))
        for dtype in ("float32", "bfloat16", "float16")
    }


@pytest.mark.parametrize(("dtype", "nats", "map_error"), [("bfloat16", 0.15, 0.02), ("float16", 0.03, 0.004)])
def test_lower_precision_stays_near_float32(built: dict[str, Cache], dtype: str, nats: float, map_error: float) -> None:
    exact, rounded = (built[name].read_shard("train", 0) for name in ("float32", dtype))
    used = exact["target_id"] >= 0
    assert (exact["topk_id"][used][:, 0] == rounded["topk_id"][used][:, 0]).mean() > 0.93
    best = (exact["topk_logprob"][used][:, 0].astype(float), rounded["topk_logprob"][used][:, 0].astype(float))
    assert np.abs(best[0] - best[1]).mean() < nats
    assert np.abs(exact["tail_logmass"][used] - rounded["tail_logmass"][used]).mean() < nats
    maps, exact_maps = (from_codes(torch.from_numpy(arrays["attention"].copy())) for arrays in (rounded, exact))
    assert (maps - exact_maps).abs().max() < map_error * 10
    assert (maps - exact_maps).abs().mean() < map_error


def test_the_commit_records_say_what_was_computed_in(built: dict[str, Cache]) -> None:
    for dtype, cache in built.items():
        record = cache.record("train", 0)
        assert record is not None
        assert record.numerics["dtype"] == dtype
    assert len({cache.recipe.recipe_id for cache in built.values()}) == 1, "the dtype is not part of the recipe"
