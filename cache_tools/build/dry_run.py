"""`--dry-run`: estimate the cost of a build. Rows are counted exactly; time and bytes are measured on the first few."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cache_tools.build.pipeline import ShardBuffer
from cache_tools.build.prepare import prepare
from cache_tools.build.resolve import at_commits, find_inputs
from cache_tools.interrupts import stop_on_signal
from cache_tools.models import choose_device
from cache_tools.progress import duration
from cache_tools.settings import BuildSettings
from cache_tools.store.layout import encode_chunk
from cache_tools.store.ledger import ShardKey
from cache_tools.store.reader import open_cache
from cache_tools.store.recipe import GROUPS
from cache_tools.store.start import start_chunks
from cache_tools.teacher.device import smaller_batch
from cache_tools.teacher.forward import TeacherPass, collect, seen_mask

PROBE_SECONDS = 15.0


@dataclass(frozen=True)
class Estimate:
    """The cost of a build. Rows, tokens and `start_bytes` are exact; `bytes`, which include those, and seconds are
    extrapolated from some rows."""

    rows: int
    text_tokens: int
    bytes: int
    start_bytes: int
    teacher_seconds: float
    prepare_seconds: float

    def __str__(self) -> str:
        return (
            f"dry run, nothing kept: {self.rows:,} rows from {self.text_tokens:,} tokens; "
            f"about {self.bytes / 1e6:,.1f} MB, of them {self.start_bytes / 1e6:,.1f} MB layers of the teacher for "
            f"students to begin with; about {duration(self.prepare_seconds)} to prepare the text "
            f"and {duration(self.teacher_seconds)} for the teacher on this machine"
        )


def estimate(settings: BuildSettings) -> Estimate:
    """Prepare the text in a temporary folder, and run the teacher on its first rows for PROBE_SECONDS.

    Raises CometError as `build_cache` does for the same settings, and KeyboardInterrupt at SIGINT and SIGTERM. The
    folder is always removed.
    """
    inputs = find_inputs(settings)
    begun = open_cache(settings.out).provenance if settings.out.exists() else {}
    inputs = at_commits(inputs, begun)
    teacher, tokenizer = inputs.load_teacher()
    with (
        stop_on_signal(None, "stopped; a dry run keeps nothing"),
        tempfile.TemporaryDirectory(prefix="comet-dry-run-") as folder,
    ):
        started = time.monotonic()
        prepare(inputs, Path(folder) / "cache", teacher, tokenizer)
        prepare_seconds = time.monotonic() - started
        cache = open_cache(Path(folder) / "cache")
        recipe = cache.recipe
        start_bytes = sum(cache.seal.files[path].size for path in start_chunks(recipe))
        prepared_bytes = sum(path.stat().st_size for path in cache.root.rglob("*") if path.is_file())
        device = choose_device(settings.device)
        teacher = teacher.to(device, getattr(torch, cache.settings["dtype"]))
        teacher_pass = TeacherPass(teacher, recipe, seen_mask(cache.vocabulary.id, recipe.vocab_size))
        shard = ShardBuffer(cache, ShardKey("train", 0), cache.settings["batch_size"], pinned=device.type == "cuda")
        parts, seconds = _probe(teacher_pass, shard)
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    probed = len(next(iter(arrays.values())))
    encoded = sum(len(encode_chunk(cache.specs["train"][name], rows)) for name, rows in arrays.items())
    rows = sum(recipe.rows(group) for group in GROUPS)
    return Estimate(
        rows=rows,
        text_tokens=cache.provenance["text_tokens"],
        bytes=prepared_bytes + encoded * rows // probed,
        start_bytes=start_bytes,
        teacher_seconds=seconds * rows / probed,
        prepare_seconds=prepare_seconds,
    )


def _probe(teacher_pass: TeacherPass, shard: ShardBuffer) -> tuple[list[dict[str, NDArray]], float]:
    """Return the teacher's arrays of as many batches as it processes in PROBE_SECONDS, and the seconds that they took.

    If memory runs out, batches are halved, as in a build.
    """
    while True:
        try:
            collect(teacher_pass.launch(shard.batches[0]))  # warm-up: the first pass of a process is slower
            parts = []
            started = time.monotonic()
            for batch in shard.batches:
                parts.append(collect(teacher_pass.launch(batch)))
                if time.monotonic() - started > PROBE_SECONDS:
                    break
            return parts, time.monotonic() - started
        except RuntimeError as error:
            shard.cut(smaller_batch(error, shard.batch_size))
