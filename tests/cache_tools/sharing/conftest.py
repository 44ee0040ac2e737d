"""A location that is no folder of this machine, and the settings of a build that is pushed."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import fsspec
import pytest
from helpers.settings import build_settings

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
