"""Small real caches that several tests of the trainer share."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.settings import build_settings
from helpers.tiny_teachers import OTHER_HEADS, TEACHERS

from cache_tools import Cache, build_cache, open_cache
from cache_tools.settings import BuildSettings


@pytest.fixture(scope="session")
def settings(sample_teacher: Path, sample_text: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildSettings:
    out = tmp_path_factory.mktemp("caches") / "kin.zarr"
    signals = {"keep": "topk", "top_k": 16, "temperatures": (1.0, 2.0), "attention_layers": "all"}
    return build_settings(out, sample_teacher, sample_text, max_tokens=None, seq_len=64, views=2, **signals)


@pytest.fixture(scope="session")
def cache(settings: BuildSettings) -> Cache:
    return build_cache(settings)


@pytest.fixture(scope="session")
def threshold_cache(settings: BuildSettings) -> Cache:
    """The same rows, with the threshold sample instead of the best tokens."""
    return build_cache(replace(settings, out=settings.out.with_name("threshold.zarr"), keep="threshold"))


@pytest.fixture(scope="session")
def cache_of(settings: BuildSettings, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Cache]:
    """The same text, of a tiny teacher of another family, which lies in `teacher` beside the cache."""

    @functools.cache
    def build(family: str) -> Cache:
        folder = tmp_path_factory.mktemp(family)
        (folder / "teacher").mkdir()
        (TEACHERS | OTHER_HEADS)[family](folder / "teacher", Path(settings.text[0]))
        return build_cache(replace(settings, out=folder / "kin.zarr", teacher=str(folder / "teacher"), seq_len=48))

    return build


@pytest.fixture(scope="session", params=["xlm-r", "bert", "modernbert"])
def of_each_family(request: pytest.FixtureRequest, cache: Cache, cache_of: Callable[[str], Cache]) -> Cache:
    """A cache for students of each family."""
    return cache if request.param == "xlm-r" else cache_of(request.param)


@pytest.fixture
def reopened(cache: Cache) -> Cache:
    """The cache as another process would open it."""
    return open_cache(cache.root)
