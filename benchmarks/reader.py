"""Measure how fast the trainer reads a cache, beside a numpy gather of the same rows from memory-mapped files.

Prints JSON: tokens per second, medians of interleaved runs, each with the cache opened anew. `arrays` is a batch's
arrays, `batches` the tensors that the trainer gets of them; the first epoch checks every file's SHA-256, and a cache
of no more shards than a buffer stays decoded after it. Without `--cache` the sample's cache is built first.

    python benchmarks/reader.py --cache kin.zarr
"""

import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from cache_tools import build_cache, open_cache
from cache_tools.cli.build import SAMPLE_LANGUAGE
from cache_tools.settings import BuildSettings
from comet.train.dataset import Arrays, CacheRows, collate, shards_of

UNREAD = ("entropy_seen",)  # what training with the full vocabulary leaves out
EPOCHS = ("first epoch", "next epoch")
CONSUMER = 1e6  # tokens per second of the student whose waiting is measured

Use = Callable[[Arrays], object]


def build_sample(folder: Path) -> Path:
    """What `comet-cache build --lang kin --sample` makes."""
    sample = Path(str(files("cache_tools.sample")))
    settings = BuildSettings(
        out=folder / "sample.zarr", language=SAMPLE_LANGUAGE, teacher=str(sample / "teacher"),
        text=(str(sample / "text.txt"),),
    )  # fmt: skip
    return build_cache(settings).root


def open_rows(path: Path) -> CacheRows:
    cache = open_cache(path)
    names = [name for name in cache.extent.arrays if name not in UNREAD]
    return CacheRows(shards_of([cache], "train"), names)


def dump_raw(rows: CacheRows, folder: Path) -> int:
    """Every array of all rows as one .npy file. Returns the tokens in them."""
    length = 0
    for name in rows.names:
        parts = [shard.cache.read_shard(shard.group, shard.index, [name])[name] for shard in rows.shards]
        np.save(folder / f"{name}.npy", np.concatenate(parts))
        length += sum(int(part.sum()) for part in parts) if name == "length" else 0
    return length


def batches_of(order: Iterable[int], batch_size: int) -> Iterator[list[int]]:
    iterator = iter(order)
    while batch := list(islice(iterator, batch_size)):
        yield batch


def read(rows: CacheRows, epoch: int, batch_size: int, use: Use) -> float:
    """Seconds of one epoch."""
    sampler = rows.sampler(seed=0)
    sampler.set_epoch(epoch)
    started = time.perf_counter()
    for batch in batches_of(sampler, batch_size):
        use(rows.__getitems__(batch))
    return time.perf_counter() - started


def gather(folder: Path, rows: CacheRows, epoch: int, batch_size: int, use: Use) -> float:
    """Seconds of the same epoch, its rows gathered from the raw files."""
    raw = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in rows.names}
    sampler = rows.sampler(seed=0)
    sampler.set_epoch(epoch)
    started = time.perf_counter()
    for batch in batches_of(sampler, batch_size):
        use({name: np.asarray(array[batch]) for name, array in raw.items()})
    return time.perf_counter() - started


def decode(rows: CacheRows) -> float:
    """Seconds to read and decode every shard once on this thread: what bounds a cache that is not held."""
    started = time.perf_counter()
    for shard in rows.shards:
        shard.cache.read_shard(shard.group, shard.index, rows.names)
    return time.perf_counter() - started


def waiting_share(rows: CacheRows, batch_size: int, pause: float) -> float:
    """The part of its time that a consumer waits for batches, which rests `pause` seconds on each of them."""
    sampler, waited, started = rows.sampler(seed=0), 0.0, time.perf_counter()
    for batch in batches_of(sampler, batch_size):
        asked = time.perf_counter()
        collate(rows.__getitems__(batch), rows.shards[0].cache.recipe)
        waited += time.perf_counter() - asked
        time.sleep(pause)
    return waited / (time.perf_counter() - started)


def measure(path: Path, raw: Path, batch_size: int, repeats: int) -> dict[str, Any]:
    tokens, recipe = dump_raw(open_rows(path), raw), open_cache(path).recipe
    seconds: dict[str, list[float]] = defaultdict(list)
    kinds: dict[str, Use] = {"arrays": lambda arrays: arrays, "batches": partial(collate, recipe=recipe)}
    for _ in range(repeats):
        for kind, use in kinds.items():
            rows = open_rows(path)
            for epoch, name in enumerate(EPOCHS):
                seconds[f"raw {kind} {name}"].append(gather(raw, rows, epoch, batch_size, use))
                seconds[f"reader {kind} {name}"].append(read(rows, epoch, batch_size, use))
        seconds["decode"].append(decode(rows))
        pause = batch_size * tokens / len(rows) / CONSUMER
        seconds["waiting share"].append(waiting_share(open_rows(path), batch_size, pause))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    waiting = median.pop("waiting share")
    ratios = {
        f"reader ÷ raw, {kind}, {name}": round(median[f"raw {kind} {name}"] / median[f"reader {kind} {name}"], 3)
        for kind in kinds
        for name in EPOCHS
    }
    return {
        "rows": len(rows),
        "shards": len(rows.shards),
        "tokens": tokens,
        "batch size": batch_size,
        "million tokens a second": {name: round(tokens / value / 1e6, 2) for name, value in median.items()},
        "the fastest run": {name: round(tokens / min(seconds[name]) / 1e6, 2) for name in median},
        "ratio of the medians": ratios,
        f"share waited at {CONSUMER:,.0f} tokens a second": round(waiting, 4),
    }


@click.command(help=__doc__.split("\n")[0])
@click.option("--cache", type=click.Path(exists=True, path_type=Path), help="[default: the sample's cache]")
@click.option("--batch-size", default=32, show_default=True)
@click.option("--repeats", default=9, show_default=True)
def main(cache: Path | None, batch_size: int, repeats: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = cache or build_sample(Path(folder))
        raw = Path(folder) / "raw"
        raw.mkdir()
        machine = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)}
        print(json.dumps(machine | measure(path, raw, batch_size, repeats), indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
