"""Trainings as processes of their own, for tests that stop or kill them."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from cache_tools import Cache
from comet.train.checkpoints import is_whole
from helpers import REPOSITORY
from helpers.builds import Running


def training_arguments(cache: Cache | str, output: Path, *options: str) -> list[str]:
    """A small student of a cache, here or at a URL, with a checkpoint after every step."""
    source = cache if isinstance(cache, str) else str(cache.root)
    arguments = ["train", "--cache", source, "--output", str(output), "--student", "nano", "--dtype", "float32"]
    return [*arguments, "--save-minutes", "0", *options]


def start_training(cache: Cache | str, output: Path, *options: str) -> Running:
    log = output.parent.with_name(f"{output.parent.name} log") / output.name
    return Running(training_arguments(cache, output, *options), log, module="comet")


def start_torchrun(cache: Cache | str, output: Path, processes: int, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "comet", *training_arguments(cache, output, *options)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_together(cache: Cache | str, output: Path, processes: int, *options: str) -> list[Running]:
    """The processes that torchrun would start, without the half minute that it and they need to load torch."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    logs = output.parent.with_name(f"{output.parent.name} log") / output.name
    arguments = training_arguments(cache, output, *options)
    every = [common | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(processes)]
    return [
        Running(arguments, logs / str(one["RANK"]), {name: str(value) for name, value in one.items()}, module="comet")
        for one in every
    ]


def checkpoints_of(output: Path) -> list[Path]:
    return [path for path in output.with_name(f"{output.name}.checkpoints").glob("checkpoint-*") if is_whole(path)]


def wait_for_checkpoint(running: Running | subprocess.Popen[str], output: Path, step: int) -> None:
    folder = output.with_name(f"{output.name}.checkpoints")
    limit = time.monotonic() + 120
    alive = running.process.is_alive if isinstance(running, Running) else lambda: running.poll() is None
    while alive() and time.monotonic() < limit:
        if any(int(path.name.split("-")[1]) >= step for path in folder.glob("checkpoint-*")):
            return
        time.sleep(0.002)
    raise AssertionError(f"no checkpoint of step {step} in {folder}")


def losses(checkpoint: Path) -> list[tuple[float, ...]]:
    """Step, loss and its parts, as logged."""
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [(line["step"], line["loss"], line["kd"], line["attention"]) for line in history if "loss" in line]
