"""The dry run where things go wrong: it ends as a build would, and keeps nothing."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.builds import ENVIRONMENT, build_arguments
from helpers.scarce_memory import out_of_memory_above
from helpers.settings import build_settings

from cache_tools.build.dry_run import estimate
from cache_tools.settings import BuildSettings


@pytest.fixture
def settings(sample_teacher: Path, sample_text: Path, tmp_path: Path) -> BuildSettings:
    return build_settings(tmp_path / "kin.zarr", sample_teacher, sample_text, max_tokens=None, seq_len=64)


def test_out_of_memory_halves_the_batch_as_in_a_build(
    settings: BuildSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = out_of_memory_above(4, monkeypatch, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"))
    found = estimate(replace(settings, batch_size=16))
    assert tried[:3] == [16, 8, 4] and max(tried[3:]) == 4
    assert found.rows > 0 and found.teacher_seconds > 0
    assert "out of memory: continuing with batches of 4 rows" in capsys.readouterr().err


def test_a_signal_leaves_nothing(sample_teacher: Path, sample_text: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    arguments = build_arguments(tmp_path / "kin.zarr", sample_teacher, sample_text)
    command = [sys.executable, "-m", "cache_tools", *arguments, "--dry-run"]
    environment = os.environ | ENVIRONMENT | {"TMPDIR": str(temporary)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as running:
        while running.poll() is None and not list(temporary.glob("comet-dry-run-*/**/ids.bin")):
            time.sleep(0.01)
        running.send_signal(signal.SIGTERM)
        _, said = running.communicate()
    assert (running.returncode, said) == (1, "stopped; a dry run keeps nothing\n")
    assert not list(temporary.glob("comet-*")) and not (tmp_path / "kin.zarr").exists()
