"""Measure the cost of the start: seconds of a build, bytes of a cache, and the bytes of it that a narrow student reads.

python benchmarks/start_cost.py --shared ../shared
"""

import math
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import click
import torch
from numpy.typing import NDArray
from quality_measures import training_lines

from cache_tools import open_cache
from cache_tools.build.pipeline import ShardBuffer
from cache_tools.build.prepare import prepare
from cache_tools.build.resolve import find_inputs
from cache_tools.build.start import compute_start
from cache_tools.settings import BuildSettings
from cache_tools.store.ledger import ShardKey
from cache_tools.store.recipe import Recipe
from cache_tools.store.start import start_arrays, start_chunks
from cache_tools.teacher.forward import TeacherPass, collect, seen_mask

BUILD_TOKENS, CACHE_TOKENS = 5_000_000, 50_000_000
BYTES_A_TOKEN = 44.5  # of the signals by default, from build.py
NARROW = 256
LARGE_TOKENS = 60_000  # different tokens in 50 million of one language


def declared_bytes(recipe: Recipe) -> int:
    return sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in start_arrays(recipe).values())


def read_bytes(recipe: Recipe, width: int) -> int:
    """Return the bytes of the chunks that a student of all layers and this width reads, before compression."""
    widths = {
        "embedding": (None, width), "position": (None, width), "attention": (None, None, width, width),
        "ffn": (None, None, 4 * width, width), "head": (None, width, width),
    }  # fmt: skip
    total = 0
    for name, spec in start_arrays(recipe).items():
        if name not in ("basis", "head_dense", "norm_weight", "head_order", "neuron_order"):
            wanted = widths.get(name, (None,) * len(spec.shape))
            region = tuple(slice(0, size if w is None else w) for size, w in zip(spec.shape, wanted, strict=True))
            total += len(spec.chunks(region)) * spec.chunk_bytes
    return total


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--shared", type=click.Path(exists=True, path_type=Path), required=True, help="The shared data.")
@click.option("--turns", default=5, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(shared: Path, turns: int, threads: int) -> None:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "kin.txt"
        text.write_text(training_lines(shared, "kin"), encoding="utf-8")
        settings = BuildSettings(
            out=Path(folder) / "kin.zarr", language="kin", teacher=str(shared / "teacher"), text=(str(text),),
            max_tokens=200_000, rows_per_shard=256, device="cpu", views=1,
        )  # fmt: skip
        inputs = find_inputs(settings)
        teacher, tokenizer = inputs.load_teacher()
        prepare(inputs, settings.out, teacher, tokenizer)
        cache = open_cache(settings.out)
        recipe, vocabulary, device = cache.recipe, cache.vocabulary, torch.device("cpu")
        teacher_pass = TeacherPass(teacher, recipe, seen_mask(vocabulary.id, recipe.vocab_size))
        shard = ShardBuffer(cache, ShardKey("train", 0), cache.settings["batch_size"], pinned=False)
        starts, passes = [], []

        def read_tokens(shard: int) -> dict[str, NDArray]:
            return cache.read_tokens("train", shard)[0]

        for _ in range(turns):
            began = time.monotonic()
            compute_start(teacher, recipe, read_tokens, vocabulary.id, vocabulary.count, device)
            starts.append(time.monotonic() - began)
            began = time.monotonic()
            for batch in shard.batches:
                collect(teacher_pass.launch(batch))
            passes.append((time.monotonic() - began) / int(shard.tokens["length"].sum()))
        shares = [start / (each * BUILD_TOKENS) for start, each in zip(starts, passes, strict=True)]
        part, seconds = statistics.median(shares), statistics.median(starts)
        print(f"start: {seconds:.1f} s, {part:.2%} of the teacher's time over {BUILD_TOKENS:,} tokens")
        stored = sum(cache.seal.files[path].size for path in start_chunks(recipe)) / declared_bytes(recipe)
        print(f"stored bytes ÷ declared: {stored:.3f}")
    large = replace(
        recipe, teacher_layers=24, teacher_hidden=1024, teacher_heads=16, vocab_size=250_002, seen_size=LARGE_TOKENS,
        start_layers=tuple(range(24)), start_positions=512,
    )  # fmt: skip
    for width in (512, 1024):
        one = replace(large, start_width=width, start_neurons=4 * width)
        size, narrow = stored * declared_bytes(one), stored * read_bytes(one, NARROW)
        share = size / (CACHE_TOKENS * BYTES_A_TOKEN + size)
        print(f"AfroXLMR-large's shape, {width} wide: {size / 1e6:,.0f} MB, {share:.1%} of {CACHE_TOKENS:,} tokens")
        print(f"  a student {NARROW} wide reads {narrow / 1e6:,.0f} MB of it, {narrow / size:.1%}")


if __name__ == "__main__":
    main()
