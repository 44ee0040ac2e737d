"""The folder of checkpoints: who may use it, and what stays in it."""

from pathlib import Path

import pytest

from cache_tools.errors import CometError
from comet.train.checkpoints import Checkpoints, seal


def write_checkpoint(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_bytes(b"1")
    seal(checkpoint)
    return checkpoint


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_in_use_is_said_to_be_in_use(tmp_path: Path, resume: bool) -> None:
    """Its checkpoints are of the training at work, not of an earlier one."""
    message = rf"^{tmp_path}/student\.checkpoints: another process is training here; choose another --output$"
    with Checkpoints(tmp_path / "student", {}, resume=False) as at_work:
        write_checkpoint(at_work.folder, step=1)
        for _ in range(2):
            with pytest.raises(CometError, match=message):
                Checkpoints(tmp_path / "student", {}, resume)


def test_what_is_refused_leaves_no_lock(tmp_path: Path) -> None:
    output = tmp_path / "student"
    for _ in range(2):
        with pytest.raises(CometError, match=r"no complete checkpoint in .*; omit --resume"):
            Checkpoints(output, {}, resume=True)
    assert not any(tmp_path.iterdir())
    with Checkpoints(output, {"seed": 0}, resume=False) as begun:
        write_checkpoint(begun.folder, step=1)
    for resume, message in ((False, "an earlier training was not finished"), (True, "was begun differently")):
        for _ in range(2):
            with pytest.raises(CometError, match=message):
                Checkpoints(output, {"seed": 1}, resume)
    with Checkpoints(output, {"seed": 0}, resume=True):
        pass
