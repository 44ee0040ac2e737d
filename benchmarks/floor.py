"""Time a build and its lower bound, the teacher's bare forward pass over the same rows, in turns."""

import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from cache_tools import Cache, open_cache
from cache_tools.build.pipeline import Throughput, fill
from cache_tools.build.prepare import prepare
from cache_tools.build.resolve import find_inputs
from cache_tools.settings import BuildSettings
from cache_tools.teacher.forward import HostBatch, host_batch
from cache_tools.teacher.head import SLICE, product
from cache_tools.teacher.model import Teacher

SAMPLE = Path(str(files("cache_tools.sample")))
SAMPLE_ROWS = 31  # of 128 tokens in one view of the sample


def settings_for(out: Path, teacher: Path, **options: Any) -> BuildSettings:
    return BuildSettings(
        out=out,
        language="kin",
        teacher=str(teacher),
        text=(str(SAMPLE / "text.txt"),),
        weak_teacher=True,
        **{"views": 1} | options,
    )


def with_rows(settings: BuildSettings, rows: int) -> BuildSettings:
    """Mask the sample in as many views as give so many rows of 128."""
    return replace(settings, views=max(1, rows // SAMPLE_ROWS))


def prepared(settings: BuildSettings) -> None:
    inputs = find_inputs(settings)
    prepare(inputs, settings.out, *inputs.load_teacher())


def filled(cache: Path, teacher: Teacher, device: torch.device) -> Throughput:
    """Fill a copy of a prepared cache and throw it away."""
    with tempfile.TemporaryDirectory(dir=cache.parent) as folder:
        copy = shutil.copytree(cache, Path(folder) / "copy.zarr")
        return fill(open_cache(copy), teacher, device, threading.Event())


def seconds(work: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def batches_of(cache: Cache, size: int) -> list[dict[str, NDArray[Any]]]:
    """The tokens of all rows, at most `size` of one shard at a time."""
    return [
        {name: array[start : start + size] for name, array in tokens.items()}
        for group in cache.specs
        for shard in cache.extent.indices(group)
        for tokens in [cache.read_tokens(group, shard)[0]]
        for start in range(0, len(tokens["length"]), size)
    ]


def beside_the_floor(cache: Cache, teacher: Teacher, device: torch.device, repeats: int) -> dict[str, Any]:
    """Build a prepared cache and run the floor over the same rows, in turns. `teacher` is on the device, in the dtype
    of the cache.

    The floor is the body under SDPA and the head's product at the targets, in slices into the same memory, as fast as
    we know how; the plain floor forms the product in one piece.
    """
    batches = [host_batch(cache.recipe, tokens) for tokens in batches_of(cache, cache.settings["batch_size"])]
    weight = teacher.head.weight.float() if device.type == "cpu" else teacher.head.weight  # as in the build
    memory = torch.empty(SLICE * max(len(b.row) for b in batches), device=device)

    @torch.inference_mode()
    def floor(plain: bool) -> None:
        for batch in batches:
            features = bare_forward(teacher, batch, device).to(weight.dtype)
            if plain:
                (features @ weight.T).float()
            else:
                for part in weight.split(SLICE):
                    product(part, features.T, out=memory[: len(part) * len(features)].view(len(part), -1))

    filled(cache.root, teacher, device)
    floor(plain=False)
    ratios: dict[str, list[float]] = {"floor": [], "plain floor": []}
    idle, speeds = [], []
    for turn in range(repeats):
        bare = seconds(lambda: floor(plain=False), device)
        build = filled(cache.root, teacher, device)
        ratios["floor"].append(bare / build.seconds)
        if turn % 2:
            ratios["plain floor"].append(seconds(lambda: floor(plain=True), device) / build.seconds)
        idle.append(build.idle)
        speeds.append(build.rows / build.seconds)
    return {
        "rows": sum(len(b.length) for b in batches),
        "dtype": cache.settings["dtype"],
        "batch_size": cache.settings["batch_size"],
        "rows_per_second": round(statistics.median(speeds), 2),
        "build_to_floor": [round(r, 3) for r in sorted(ratios["floor"])],
        "median_build_to_floor": round(statistics.median(ratios["floor"]), 3),
        "median_build_to_plain_floor": round(statistics.median(ratios["plain floor"]), 3),
        "median_idle": round(statistics.median(idle), 4),
    }


def bare_forward(teacher: Teacher, batch: HostBatch, device: torch.device) -> torch.Tensor:
    """[T, H] features at the targets."""
    ids, length, row, position = (t.to(device) for t in (batch.input_ids, batch.length, batch.row, batch.position))
    is_full = bool((batch.length == ids.shape[1]).all())
    mask = None if is_full else torch.arange(ids.shape[1], device=device) < length[:, None]
    return teacher.transform(teacher.hidden_states(ids, mask, None)[row, position])
