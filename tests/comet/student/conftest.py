"""Caches with a start, and without."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, PreTrainedModel

from cache_tools import Cache, build_cache
from cache_tools.settings import BuildSettings


@pytest.fixture(scope="module", params=["xlm-r", "bert"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def started(family: str, cache: Cache, cache_of: Callable[[str], Cache]) -> Cache:
    """A cache with a start of all layers, as wide as its teacher."""
    return cache if family == "xlm-r" else cache_of(family)


@pytest.fixture(scope="module")
def teacher(started: Cache, sample_teacher: Path) -> PreTrainedModel:
    folder = started.root.parent / "teacher"
    found = AutoModelForMaskedLM.from_pretrained(
        folder if folder.exists() else sample_teacher, dtype=torch.float32
    ).eval()
    found.set_attn_implementation("eager")
    return found


@pytest.fixture(scope="module")
def unstarted(settings: BuildSettings, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    out = tmp_path_factory.mktemp("unstarted") / "kin.zarr"
    return build_cache(replace(settings, out=out, max_tokens=1500, start_layers="none"))


@pytest.fixture(scope="module")
def halves(settings: BuildSettings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Cache, Cache]:
    """Two caches of the teacher, each of some sentences, with starts of other widths."""
    folder = tmp_path_factory.mktemp("halves")
    lines = Path(settings.text[0]).read_text(encoding="utf-8").splitlines()
    caches = []
    for name, part, width in (("one", lines[:60], 96), ("two", lines[60:200], None)):
        (folder / f"{name}.txt").write_text("\n".join(part), encoding="utf-8")
        options = {"text": (str(folder / f"{name}.txt"),), "start_width": width}
        caches.append(build_cache(replace(settings, out=folder / f"{name}.zarr", **options)))
    return caches[0], caches[1]
