"""A small real cache whose text lies in several files, with and without that text."""

from pathlib import Path

import pytest
from helpers.attaching import given
from helpers.settings import build_settings

from cache_tools import Cache, build_cache
from cache_tools.settings import BuildSettings
from cache_tools.store.copy import cut
from cache_tools.store.ledger import without_text


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, sample_text: Path) -> Path:
    """Two files of text, more than the cache takes, and an evaluation file that three documents share words with."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = sample_text.read_text(encoding="utf-8").splitlines()
    parts = {"a.txt": lines[:60], "b.txt": lines[60:], "test.txt": [lines[4], lines[7], lines[61]]}
    for name, part in parts.items():
        (folder / name).write_text("\n".join(part), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def settings(sample_teacher: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildSettings:
    text, exclude = given(corpus)
    out = tmp_path_factory.mktemp("whole") / "kin.zarr"
    return build_settings(out, sample_teacher, *text, exclude=exclude, views=3, seed=7)


@pytest.fixture(scope="session")
def whole(settings: BuildSettings) -> Cache:
    return build_cache(settings)


@pytest.fixture
def detached(whole: Cache, tmp_path: Path) -> Cache:
    return cut(whole, tmp_path / "kin.zarr", without_text(whole.extent))
