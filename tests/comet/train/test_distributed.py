"""torchrun: several processes train the student of one, on the same rows, and stop, resume and fail together."""

import os
import signal
import time
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
from helpers.trainings import checkpoints_of, losses, start_together, start_torchrun, wait_for_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from cache_tools import Cache
from comet.train.sampler import ShardShuffleSampler, SharedBatches


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    batch_size=st.integers(1, 12),
    processes=st.integers(1, 5),
    epoch=st.integers(0, 2),
)
def test_together_they_have_the_batches_of_one(sizes: list[int], batch_size: int, processes: int, epoch: int) -> None:
    def batches(rank: int, count: int) -> SharedBatches:
        sampler = ShardShuffleSampler(sizes, seed=3)
        sampler.set_epoch(epoch)
        return SharedBatches(sampler, batch_size, rank, count)

    alone, shared = batches(0, 1), [batches(rank, processes) for rank in range(processes)]
    parts = list(zip_longest(*shared))
    assert len(parts) == len(alone) == len(shared[-1])
    for whole, of_each in zip(alone, parts, strict=True):
        assert [row for part in of_each for row in part] == whole
        assert max(map(len, of_each)) - min(map(len, of_each)) <= 1


def options_of(processes: int) -> list[str]:
    settings = ["logging_steps=1"] + (["ddp_timeout=300", "ddp_bucket_cap_mb=5"] * (processes > 1))
    return [part for setting in settings for part in ("--set", setting)]


def batch_with_a_small_last_one(cache: Cache, processes: int) -> str:
    """A batch size that leaves fewer rows than processes for the last batch of an epoch, so that one has none."""
    sizes = range(2 * processes, 99, processes)
    return str(next(size for size in sizes if 0 < cache.recipe.train_rows % size < processes))


@pytest.mark.slow
def test_three_processes_stop_resume_and_train_as_one(cache: Cache, tmp_path: Path) -> None:
    options = ["--batch-size", batch_with_a_small_last_one(cache, 3), "--epochs", "1"]
    histories = {}
    for processes in (1, 3):
        output, given = tmp_path / f"by {processes}", [*options_of(processes), *options]
        running = start_together(cache, output, processes, *given)
        wait_for_checkpoint(running[0], output, 4)
        for one in running:
            os.kill(one.pid, signal.SIGTERM)
        ended = [one.wait() for one in running]
        assert all(one.code for one in ended), "stopped"
        errors = "".join(one.stderr for one in ended)
        assert errors.count("stopping after a last checkpoint (interrupt again to stop at once)") == 1, errors
        assert "run again with --resume to continue" in errors, errors
        histories[processes] = losses(max(checkpoints_of(output), key=lambda path: int(path.name.split("-")[1])))
        ended = [one.wait() for one in start_together(cache, output, processes, *given, "--resume")]
        assert {one.code for one in ended} == {0}, ended
        said = "".join(one.stdout for one in ended)
        assert said.count("resuming after step") == said.count("load it:") == 1, "one of them speaks"
    steps = min(map(len, histories.values()))
    assert steps >= 4
    for one, three in zip(*(history[:steps] for history in histories.values()), strict=True):
        assert one == pytest.approx(three, rel=1e-5)
    one, three = (load_file(tmp_path / f"by {processes}" / "model.safetensors") for processes in (1, 3))
    difference = torch.cat([(weight - three[name]).flatten() for name, weight in one.items()]).norm()
    assert difference < 1e-4 * torch.cat([weight.flatten() for weight in one.values()]).norm()
    expected = [f"by {count}{ending}" for count in (1, 3) for ending in ("", ".html", ".toml")]
    assert sorted(path.name for path in tmp_path.iterdir()) == expected


@pytest.mark.slow
def test_one_that_is_killed_ends_the_other(cache: Cache, tmp_path: Path) -> None:
    output = tmp_path / "student"
    running = start_torchrun(cache, output, 2, *options_of(2), "--batch-size", "4", "--epochs", "30")
    wait_for_checkpoint(running, output, 3)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGKILL)
    began = time.monotonic()
    running.communicate(timeout=120)
    assert running.returncode == 1
    assert time.monotonic() - began < 60, "the other one does not wait for ever"
    assert not output.exists() and checkpoints_of(output), "and there is something to go on from"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batch-size", "5"], "error: --batch-size 5: expected a multiple of 2, the number of processes"),
        (["--resume"], "error: --resume: no complete checkpoint in"),
        (["--set", "use_cpu=False"], "error: torchrun started 2 processes, but they are not connected"),
    ],
)
def test_all_of_them_refuse_what_one_refuses(cache: Cache, tmp_path: Path, options: list[str], said: str) -> None:
    for running in start_together(cache, tmp_path / "student", 2, *options_of(2), *options):
        ended = running.wait()
        assert ended.code and said in ended.stderr, ended
    assert not any(tmp_path.iterdir())
