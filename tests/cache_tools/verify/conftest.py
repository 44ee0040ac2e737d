"""Caches that verify runs the teacher over again."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.settings import build_settings

from cache_tools import build_cache
from cache_tools.settings import RerunSettings

ALL_ROWS = 10_000


@pytest.fixture(scope="package")
def built(tmp_path_factory: pytest.TempPathFactory, sample_teacher: Path, sample_text: Path) -> dict[str, Path]:
    """Complete caches that nobody changes; those of one keep are of one recipe."""
    folder = tmp_path_factory.mktemp("built")
    settings = build_settings(folder, sample_teacher, sample_text, temperatures=(1.0, 2.0))
    for keep, top_k in (("topk", 8), ("threshold", 32)):
        for dtype in ("float32", "bfloat16"):
            out = folder / f"{keep} {dtype}"
            build_cache(replace(settings, out=out, keep=keep, top_k=top_k, dtype=dtype))
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def copy(built: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one of them to change."""
    return lambda kind: Path(shutil.copytree(built[kind], tmp_path / "kin.zarr"))


@pytest.fixture
def again(sample_teacher: Path) -> RerunSettings:
    """Every row, so that whatever is wrong is looked at."""
    return RerunSettings(str(sample_teacher), rows=ALL_ROWS, device="cpu")
