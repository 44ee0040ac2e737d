"""A small real cache that several tests of the trainer share."""

from dataclasses import replace
from pathlib import Path

import pytest
from helpers.settings import build_settings

from cache_tools import Cache, build_cache, open_cache
from cache_tools.settings import BuildSettings


@pytest.fixture(scope="session")
def settings(sample_teacher: Path, sample_text: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildSettings:
    out = tmp_path_factory.mktemp("caches") / "kin.zarr"
    signals = {"keep": "topk", "top_k": 16, "temperatures": (1.0, 2.0), "attention_layers": "all", "attention_every": 3}
    return build_settings(out, sample_teacher, sample_text, max_tokens=None, seq_len=64, views=2, **signals)


@pytest.fixture(scope="session")
def cache(settings: BuildSettings) -> Cache:
    return build_cache(settings)


@pytest.fixture(scope="session")
def threshold_cache(settings: BuildSettings) -> Cache:
    """The same rows, with the threshold sample instead of the best tokens."""
    return build_cache(replace(settings, out=settings.out.with_name("threshold.zarr"), keep="threshold"))


@pytest.fixture
def reopened(cache: Cache) -> Cache:
    """The cache as another process would open it."""
    return open_cache(cache.root)
