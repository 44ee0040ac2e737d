"""Training on a real GPU: what is asynchronous, what is rounded, and resuming to the bit."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.students import NANO
from helpers.trainings import checkpoints_of, start_training, wait_for_checkpoint

from cache_tools import Cache
from cache_tools.store.ledger import file_record
from comet.student.model import new_student
from comet.student.vocabulary import full_vocabulary
from comet.train.dataset import CacheRows, collate, shards_of
from comet.train.distiller import Distiller
from comet.train.objective import DEFAULT

pytestmark = pytest.mark.gpu
STEPS = 30


@pytest.mark.parametrize("bf16", [False, True])
def test_a_step_is_that_of_the_cpu_and_waits_for_nothing(of_each_family: Cache, bf16: bool) -> None:
    cache = of_each_family
    batch = collate(CacheRows(shards_of([cache], "train"), cache.extent.arrays).__getitems__([0, 5, 9]), cache.recipe)
    objective = replace(DEFAULT, hard_weight=0.2, attention_weight=0.4)
    losses: dict[str, torch.Tensor] = {}
    for device in ("cpu", "cuda"):
        student = new_student(NANO, [cache], full_vocabulary(cache.recipe), dropout=0.0, seed=0)
        distiller = Distiller(student, cache.recipe, objective, bf16=bf16 and device == "cuda").train().to(device)
        here = {name: tensor.to(device) for name, tensor in batch.items()}
        for _ in range(2):  # the first step on a GPU sets its libraries up
            torch.cuda.set_sync_debug_mode("error" if "cuda" in losses else "default")
            try:
                parts = distiller(**here)
                parts["loss"].backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")
            losses[device] = torch.stack(list(parts.values())).detach().cpu()
    torch.testing.assert_close(losses["cuda"], losses["cpu"], rtol=0.02 if bf16 else 1e-4, atol=0.01 if bf16 else 1e-4)


def test_a_killed_training_goes_on_to_the_bit(cache: Cache, tmp_path: Path) -> None:
    """With deterministic algorithms, in bfloat16."""
    options = ["--dtype", "bfloat16", "--set", "full_determinism=true", "--steps", str(STEPS), "--batch-size", "4"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    ended = start_training(cache, whole, *options).wait()
    assert ended.code == 0, ended.stderr
    running = start_training(cache, stopped, *options)
    wait_for_checkpoint(running, stopped, STEPS // 2)
    running.send(signal.SIGKILL)
    assert checkpoints_of(stopped)
    ended = start_training(cache, stopped, *options, "--resume").wait()
    assert ended.code == 0, ended.stderr
    weights = [(output / "model.safetensors").read_bytes() for output in (whole, stopped)]
    assert file_record(weights[0]) == file_record(weights[1])
