"""A small real cache that several tests of the trainer share."""

from dataclasses import replace
from pathlib import Path

import pytest

from cache_tools import Cache, build_cache, open_cache
from cache_tools.settings import BuildSettings


@pytest.fixture(scope="session")
def settings(sample_teacher: Path, sample_text: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildSettings:
    return BuildSettings(
        out=tmp_path_factory.mktemp("caches") / "kin.zarr",
        language="kin",
        teacher=str(sample_teacher),
        text=(str(sample_text),),
        seq_len=64,
        views=2,
        rows_per_shard=16,
        keep="topk",
        top_k=16,
        temperatures=(1.0, 2.0),
        attention_layers="all",
        attention_size=8,
        attention_every=3,
    )


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
