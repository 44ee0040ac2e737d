"""The parts of gpu.py that train: a step beside one without a teacher, waiting for data, and resuming to the bit."""

import hashlib
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from floor import seconds
from gpu_build import Run, peak_mib, prepared, random_teacher
from train import Batch, PlainStep, Step

from cache_tools import Cache, open_cache
from cache_tools.build.pipeline import fill
from comet.preparation import training_arguments
from comet.settings import StudentConfig
from comet.student.shape import COMET
from comet.train.checkpoints import newest_checkpoint
from comet.train.dataset import CacheRows, arrays_to_read, shards_of, student_collator
from comet.train.trainer import DistillationTrainer
from comet.train.validation import validation_rows

REPOSITORY = Path(__file__).parents[1]
GPU_TESTS = ("tests/cache_tools/teacher/test_teacher_on_a_gpu.py", "tests/comet/train/test_training_on_a_gpu.py")


def training(run: Run, name: str) -> dict[str, Any]:
    """Steps of the paper's student from a cache of a teacher's, with a full and a trimmed vocabulary; in bfloat16 on a
    GPU, in float32 on a CPU, most of which only emulate it."""
    cache = prepared(run, "training", random_teacher(name, run))
    fill(cache, random_teacher(name, run), run.device, threading.Event())
    cache = open_cache(cache.root)
    return {vocabulary: steps(run, cache, vocabulary) for vocabulary in ("full", "trimmed")}


def steps(run: Run, cache: Cache, vocabulary: str) -> dict[str, Any]:
    """Seconds of a step, its ratio to one of a plain masked LM, tokens a second, and the share of waiting for data.

    Batches come through the trainer's own loader; the same ones, kept on the device, show how long a step takes that
    need not wait for them.
    """
    bf16 = run.device.type == "cuda"
    step = Step(cache, vocabulary, 1.0, bf16, device=run.device)
    logits_only = Step(cache, vocabulary, 0.0, bf16, device=run.device)
    plain = PlainStep(cache, vocabulary, 0.0, bf16, device=run.device)
    loader = trainer_of(run, cache, step).get_train_dataloader()
    batches = list(islice(loader, run.batches))
    kept: dict[str, Callable[[], None]] = {
        name: lambda one=one: run_all(one, batches)
        for name, one in (("step", step), ("logits only", logits_only), ("plain", plain))
    }
    times: dict[str, list[float]] = {name: [] for name in [*kept, "loaded"]}
    for turn in range(run.repeats + 1):
        found = {name: seconds(work, run.device) for name, work in kept.items()}
        found["loaded"] = seconds(lambda: run_all(step, islice(loader, run.batches)), run.device)
        for name, elapsed in found.items():
            times[name] += [elapsed] if turn else []
    medians = {name: statistics.median(found) / len(batches) for name, found in times.items()}
    tokens = sum(int(batch["length"].sum()) for batch in batches) / len(batches)
    return {
        "milliseconds": round(1000 * medians["loaded"], 2),
        "step_to_plain": round(medians["step"] / medians["plain"], 3),
        "logits_only_to_plain": round(medians["logits only"] / medians["plain"], 3),
        "waiting": round(max(0.0, 1 - medians["step"] / medians["loaded"]), 4),
        "tokens_per_second": round(tokens / medians["loaded"]),
        "bf16": bf16,
        "rows": len(batches[0]["length"]),
        "peak_mib": peak_mib(run.device),
    }


def run_all(step: Step, batches: Iterable[Batch]) -> None:
    for batch in batches:
        step(batch)


def trainer_of(run: Run, cache: Cache, step: Step) -> DistillationTrainer:
    """The trainer that comet-train would make, for its batches."""
    keep = (("use_cpu", True),) if run.device.type == "cpu" else ()
    config = StudentConfig(run.folder / "student", steps=1, batch_size=8 if run.small else 64, arguments=keep)
    arguments = training_arguments(config, COMET)
    arguments.output_dir = str(run.folder)
    return DistillationTrainer(
        step.distiller,
        arguments,
        CacheRows(shards_of([cache], "train"), arrays_to_read(cache.recipe, True, step.vocabulary.trimmed)),
        validation_rows(shards_of([cache], "validation")),
        collator=student_collator(cache.recipe, step.vocabulary),
    )


def resume(run: Run) -> dict[str, Any]:
    """A training killed by SIGKILL and resumed, beside an undisturbed one, with deterministic algorithms."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}

    def command(module: str, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", module, *options], cwd=run.folder, env=environment, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    def finished(process: subprocess.Popen[str]) -> None:
        _, said = process.communicate()
        if process.returncode:
            raise RuntimeError(said.strip().splitlines()[-1])

    finished(command("cache_tools", "build", "--lang", "kin", "--sample", "--device", str(run.device)))
    number = 12 if run.small else 60
    options = ["train", "--cache", "kin.zarr", "--student", "nano", "--steps", str(number), "--batch-size", "8"]
    options += ["--save-minutes", "0", "--set", "full_determinism=true"]
    options += ["--dtype", "bfloat16"] if run.device.type == "cuda" else ["--dtype", "float32", "--set", "use_cpu=true"]
    finished(command("comet", *options, "--output", "whole"))
    killed, checkpoints = command("comet", *options, "--output", "killed"), run.folder / "killed.checkpoints"
    while killed.poll() is None and step_reached(checkpoints) < number // 2:
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    resumed_after = step_reached(checkpoints)
    finished(command("comet", *options, "--output", "killed", "--resume"))
    weights = [(run.folder / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    same = len({hashlib.sha256(one).digest() for one in weights}) == 1
    return {"to_the_bit": same, "resumed_after": resumed_after, "steps": number}


def step_reached(checkpoints: Path) -> int:
    newest = newest_checkpoint(checkpoints)
    return 0 if newest is None else int(newest.name.split("-")[1])


def gpu_tests(run: Run) -> dict[str, Any]:
    """The tests marked gpu."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "--tb=short", *GPU_TESTS]
    done = subprocess.run(command, cwd=REPOSITORY, env=os.environ, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR", "E  "))]
    return {"passed": done.returncode == 0, "said": lines[-1], "failed": failed}
