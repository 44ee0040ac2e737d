"""The parts of train.py that run whole trainings: time to start, memory, and the cost of a kill."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from measuring import in_child
from torch import Tensor
from transformers import AutoModelForMaskedLM

from cache_tools import Cache, build_cache, open_cache
from cache_tools.settings import BuildSettings
from comet.distillation import distill
from comet.preparation import choose_vocabulary
from comet.settings import StudentConfig
from comet.train.checkpoints import newest_checkpoint
from comet.train.dataset import CacheRows, collate, shards_of
from comet.train.objective import DEFAULT

TOOL = [sys.executable, "-m"]
SAMPLE_TEACHER = str(files("cache_tools.sample") / "teacher")
COMPARED_STEPS = 50
TRIALS = 20


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "HF_HUB_OFFLINE": "1"}


@torch.no_grad()
def dense_kl(cache: Cache, shared: Path, student: Path, vocabulary: str) -> float:
    """KL(teacher ‖ student) among all tokens of the corpus, at the targets of the validation rows."""
    rows = CacheRows(shards_of([cache], "validation"), ["input_ids", "length", "target_position", "target_id"])
    seen = torch.from_numpy(cache.vocabulary.id.astype("int64"))
    kind = choose_vocabulary(vocabulary, [cache])
    models = [AutoModelForMaskedLM.from_pretrained(path).eval() for path in (shared / "teacher", student)]
    total, targets = 0.0, 0
    for begin in range(0, len(rows), 32):
        arrays = rows.__getitems__(range(len(rows))[begin : begin + 32])
        batch = collate(arrays, cache.recipe)
        mask = torch.arange(batch["input_ids"].shape[1]) < batch["length"][:, None]

        def log_probs(model: Any, ids: Tensor, columns: Tensor, mask: Tensor = mask, at: Any = batch) -> Tensor:
            logits = model(ids, attention_mask=mask).logits[at["target_row"], at["target_position"]]
            return logits[:, columns].double().log_softmax(-1)  # [T, V_seen]

        teacher = log_probs(models[0], batch["input_ids"], seen)
        ours = log_probs(models[1], kind.student_id[batch["input_ids"]], kind.student_id[seen])
        total += (teacher.exp() * (teacher - ours)).sum().item()
        targets += len(teacher)
    return total / targets


def starts(folder: Path, shared: Path) -> dict[str, Any]:
    """After equal steps on a real teacher, from the cache's start and from a random one."""
    settings = BuildSettings(
        out=folder / "real.zarr", language="kin", teacher=str(shared / "teacher"),
        text=(str(shared / "data/text/kin.txt.xz"),), max_tokens=200_000, views=1,
    )  # fmt: skip
    cache, result = build_cache(settings), {}
    for vocabulary in ("full", "trimmed"):
        for init in ("cache", "random"):
            output = folder / f"{vocabulary}-{init}"
            config = StudentConfig(output, student="small", vocabulary=vocabulary, init=init, steps=200)
            done = distill([cache], config)
            result[f"{vocabulary}, {init}"] = {
                "kl_before": round(done.before.kl, 3),
                "kl_after": round(done.after.kl, 3),
                "dense_kl_after": round(dense_kl(cache, shared, output, vocabulary), 3),
            }
    return result


def memory_with_ten_times_the_cache(folder: Path, shared: Path) -> dict[str, Any]:
    """Peaks of whole trainings of as many steps, on a cache of more shards than are held, and on ten times it."""
    peaks = {}
    for tokens in (100_000, 1_000_000):
        settings = BuildSettings(
            out=folder / f"{tokens}.zarr", language="kin", teacher=SAMPLE_TEACHER,
            text=(str(shared / "data/text/kin.txt.xz"),), max_tokens=tokens, rows_per_shard=64, views=1,
        )  # fmt: skip
        in_child(build, settings)
        peaks[tokens] = in_child(train, settings.out, folder / f"of-{tokens}")["peak_mib"]
    small, large = peaks.values()
    return {"mib": peaks, "ratio": round(large / small, 3)}


def build(settings: BuildSettings) -> dict[str, Any]:
    build_cache(settings)
    return {}


def train(cache: Path, output: Path) -> dict[str, Any]:
    steadfast = replace(DEFAULT, patience=1000)
    distill([open_cache(cache)], StudentConfig(output, student="nano", objective=steadfast, steps=500))
    return {}


def killed(folder: Path) -> dict[str, Any]:
    """Trainings killed by SIGKILL twice at random instants and resumed, against an undisturbed one, step by step."""
    folder.mkdir()
    alone = environment() | {"OMP_NUM_THREADS": "1"}
    build = [*TOOL, "cache_tools", "build", "--lang", "kin", "--sample", "--rows-per-shard", "32"]
    subprocess.run(build, cwd=folder, env=alone, check=True, capture_output=True)
    command = [*TOOL, "comet", "train", "--cache", "kin.zarr", "--student", "nano", "--steps", "2000"]
    command += ["--batch-size", "4", "--dtype", "float32", "--save-minutes", "0", "--set", "logging_steps=1"]

    def run(name: str, instants: list[float]) -> tuple[list[float], int]:
        """Loss of each of the first steps, and how often it was killed. An instant counts steps and parts of one."""
        checkpoints, kills = folder / f"{name}.checkpoints", 0
        for instant in [*instants, COMPARED_STEPS + 1.0]:
            whole = newest_checkpoint(checkpoints)
            process = subprocess.Popen(
                [*command, "--output", name, *(["--resume"] if whole else [])], cwd=folder, env=alone,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            while process.poll() is None and step_of(newest_folder(checkpoints)) < int(instant):
                time.sleep(0.001)
            time.sleep((instant % 1) * 0.1)
            process.send_signal(signal.SIGKILL)
            if process.wait() != -signal.SIGKILL:
                raise SystemExit(f"{name}: ended with {process.returncode}")
            kills += 1
        last = newest_checkpoint(checkpoints)
        assert last is not None
        history = json.loads((last / "trainer_state.json").read_text())["log_history"]
        losses = [line["loss"] for line in history if "loss" in line][:COMPARED_STEPS]
        assert len(losses) == COMPARED_STEPS
        return losses, kills

    expected, _ = run("whole", [])
    same = kills = 0
    for trial in range(TRIALS):
        chance = random.Random(trial)
        found, often = run(f"killed-{trial}", sorted(chance.uniform(1, COMPARED_STEPS) for _ in range(2)))
        same, kills = same + (found == expected), kills + often
    return {"same": same, "of": TRIALS, "kills": kills}


def newest_folder(checkpoints: Path) -> Path | None:
    """The newest checkpoint, whole or not."""
    return max(checkpoints.glob("checkpoint-*"), key=step_of, default=None)


def step_of(checkpoint: Path | None) -> int:
    return int(checkpoint.name.split("-")[1]) if checkpoint else 0
