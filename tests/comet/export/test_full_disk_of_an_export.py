"""A disk that is full while a model is exported, or the best fine-tuned one is written."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.small_disk import enlarge, small_disk
from helpers.small_tasks import write_topics

from cache_tools.errors import CometError
from comet.evaluate.evaluation import evaluate
from comet.evaluate.settings import EvaluationSettings
from comet.export.export import export
from comet.export.settings import ExportSettings


def silent(line: str) -> None:
    pass


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [100, 5_000])
def test_an_export_goes_on_after_room_was_made(kilobytes: int, sample_teacher: Path, tmp_path: Path) -> None:
    settings = ExportSettings(sample_teacher, output=tmp_path / "disk" / "onnx")
    with small_disk(tmp_path / "disk", kilobytes):
        with pytest.raises(CometError, match=r"onnx: cannot be written \(.*\); make room, then run the same command"):
            export(settings, silent)
        assert list((tmp_path / "disk").iterdir()) == []
        enlarge(tmp_path / "disk")
        assert (export(settings, silent) / "model.onnx").stat().st_size > 1000 * kilobytes


@pytest.mark.slow
def test_an_evaluation_goes_on_after_room_was_made(sample_teacher: Path, tmp_path: Path) -> None:
    settings = EvaluationSettings(
        models=(str(sample_teacher),),
        task="sib200",
        language="kin",
        data=write_topics(tmp_path / "data" / "kin"),
        results=tmp_path / "r.json",
        seeds=1,
        epochs=1,
    )
    disk = tmp_path / "disk"
    with small_disk(disk, 5_000):
        settings = replace(settings, output=disk / "model")
        with pytest.raises(
            CometError, match=r"model: cannot be written \(No space left on device\); all scores are in"
        ):
            evaluate(settings, silent)
        assert list(disk.iterdir()) == []
        before = json.loads((tmp_path / "r.json").read_bytes())["models"][0]["runs"]
        enlarge(disk)
        evaluate(settings, silent)
        assert (disk / "model" / "model.safetensors").exists()
        after = json.loads((tmp_path / "r.json").read_bytes())["models"][0]["runs"]
        assert after == before, "no run was repeated"
