"""A small cache, and copies of it to damage."""

import shutil
from pathlib import Path

import pytest
from helpers.small_caches import make_cache


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete cache that nobody changes."""
    root = tmp_path_factory.mktemp("built") / "kin.zarr"
    make_cache(root)
    return root


@pytest.fixture
def cache(built: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(built, tmp_path / "kin.zarr"))
