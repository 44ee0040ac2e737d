"""A cache to move, a location that is no folder of this machine, and the settings of a build that is pushed."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import fsspec
import pytest
from helpers.settings import build_settings
from helpers.small_caches import make_cache, small_recipe

from cache_tools import Cache, open_cache
from cache_tools.settings import BuildSettings


@pytest.fixture
def memory() -> Iterator[str]:
    """The URL of an empty folder in fsspec's memory."""
    yield "memory://lab/kin"
    with suppress(FileNotFoundError):
        fsspec.filesystem("memory").rm("lab", recursive=True)


@pytest.fixture
def settings(sample_teacher: Path, sample_text: Path, tmp_path: Path) -> BuildSettings:
    return build_settings(
        tmp_path / "here" / "kin.zarr", sample_teacher, sample_text, max_tokens=None, seq_len=64, keep="topk"
    )


@pytest.fixture
def whole(tmp_path: Path) -> Cache:
    """A small complete cache; some modules have another one."""
    make_cache(tmp_path / "whole", small_recipe())
    return open_cache(tmp_path / "whole")
