"""The main job on real Kinyarwanda with a real teacher, smaller than in benchmarks/main_job.py."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from helpers import REPOSITORY

from cache_tools import build_cache
from cache_tools.settings import BuildSettings
from comet import StudentConfig, distill


@pytest.fixture(scope="module")
def main_job() -> ModuleType:
    spec = importlib.util.spec_from_file_location("main_job", REPOSITORY / "benchmarks" / "main_job.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["main_job"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_student_of_real_text_is_near_its_teacher_on_new_text(
    shared: Path, main_job: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = BuildSettings(
        out=tmp_path / "kin.zarr",
        language="kin",
        teacher=str(shared / "teacher"),
        text=(str(shared / "data/text/kin.txt.xz"),),
        max_tokens=20_000,
        rows_per_shard=128,
    )
    result = distill([build_cache(settings)], StudentConfig(tmp_path / "student", vocabulary="full", steps=12))
    assert result.shape.name == "small"
    assert result.after.kl < 0.9 * result.before.kl
    monkeypatch.setattr(main_job, "EVALUATION_ROWS", 24)
    measured = main_job.dense_kl(tmp_path / "student", shared)
    assert measured["ratio"] < 0.65, measured
