"""What is kept ready for ten minutes on a GPU still runs, on the CPU and small."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import REPOSITORY

PARTS = ("ModernBERT 128 fp16", "XLM-R values")
ABSENT = ("datasets", "pandas", "pyarrow", "scipy", "sentencepiece", "seqeval", "sklearn", "zstandard")
"""What stays behind where there is no network."""
WITHOUT_THEM = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({ABSENT}))
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_parts(folder: Path, *parts: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What gpu.py prints and what it writes."""
    benchmarks = REPOSITORY / "benchmarks"
    command = [sys.executable, "-c", WITHOUT_THEM, str(benchmarks / "gpu.py"), "--device", "cpu", "--small"]
    command += ["--output", str(folder / "gpu.json"), *(word for part in parts for word in ("--only", part))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(benchmarks)))}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()], json.loads((folder / "gpu.json").read_text())


@pytest.mark.slow
def test_parts_are_printed_and_written_one_by_one(tmp_path: Path) -> None:
    printed, written = run_parts(tmp_path, *PARTS)
    assert [name for part in printed for name in part] == list(PARTS)
    assert written["device"] == "cpu"
    assert printed == [{name: written[name]} for name in PARTS]
    floor, values = (written[name] for name in PARTS)
    assert floor["dtype"] == "float16"
    assert 0 < floor["median_build_to_floor"] < 2
    for dtype in ("bfloat16", "float16"):
        assert values[dtype]["within"], values[dtype]["beyond"]
        assert "certain_id" in values[dtype]["differ"], "else nothing was compared but draws"


@pytest.mark.slow
def test_the_usual_script_and_fine_tuning_run_on_the_same_rows_and_steps(tmp_path: Path) -> None:
    _, written = run_parts(tmp_path, "usual script", "fine-tuning")
    assert written["usual script"]["rows"] == 31
    assert 0 < written["usual script"]["build_to_usual"] < 1
    assert written["fine-tuning"]["steps"] == 2
    assert written["fine-tuning"]["cpu"].keys() == written["fine-tuning"]["device"].keys()
