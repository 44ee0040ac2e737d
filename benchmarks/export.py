"""Measure size and speed of exported models: torch, ONNX in float32, ONNX in int8, one text at a time on one thread.

A classifier of three labels, which is what is deployed most, of every preset, with XLM-R's vocabulary
and with a trimmed one; random weights, which cost what trained ones cost. Medians of interleaved calls.

    python benchmarks/export.py --output export.json
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from transformers import XLMRobertaForSequenceClassification

from comet.export.onnx_model import open_session, run, write_int8, write_onnx
from comet.student.family import XLM_R as FAMILY
from comet.student.family import StudentShape
from comet.student.shape import COMET

XLM_R, TRIMMED = 250_002, 16_000
SHAPES = (COMET, StudentShape("6 x 128", 6, 128, 8, 512), StudentShape("6 x 48", 6, 48, 8, 192))
LENGTHS = (32, 128)


def classifier(shape: StudentShape, vocab_size: int) -> XLMRobertaForSequenceClassification:
    config = FAMILY.config(shape, vocab_size)
    config.num_labels = 3
    return XLMRobertaForSequenceClassification(config).eval()


def milliseconds(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median of each way, one after another in every turn; the first turns only warm up."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 3):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if turn >= 3:
                taken[name].append(1000 * (time.perf_counter() - started))
    return {name: round(statistics.median(values), 3) for name, values in taken.items()}


@torch.no_grad()
def measured(shape: StudentShape, vocab_size: int, folder: Path, repeats: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = classifier(shape, vocab_size)
    exact, int8 = folder / "float32.onnx", folder / "int8.onnx"
    write_onnx(model, exact)
    write_int8(exact, int8)
    sizes = {
        "torch": sum(p.nbytes for p in model.parameters()),
        "onnx": exact.stat().st_size,
        "onnx int8": int8.stat().st_size,
    }
    sessions = {"onnx": open_session(exact), "onnx int8": open_session(int8)}
    found: dict[str, Any] = {"MiB": {name: round(size / 2**20, 1) for name, size in sizes.items()}}
    for length in LENGTHS:
        ids = torch.randint(5, vocab_size, (1, length))  # [1, L]
        mask = torch.ones_like(ids)
        ways: dict[str, Callable[[], Any]] = {"torch": lambda ids=ids, mask=mask: model(ids, attention_mask=mask)}
        for name, session in sessions.items():
            arrays = ids.numpy(), np.ones((1, length), np.int64)
            ways[name] = lambda session=session, arrays=arrays: run(session, *arrays)
        found[f"ms at {length} tokens"] = milliseconds(ways, repeats)
    return found


@click.command(help=__doc__.split("\n")[0])
@click.option("--output", type=click.Path(path_type=Path), default="export.json", show_default=True)
@click.option("--repeats", default=60, show_default=True)
def main(output: Path, repeats: int) -> None:
    torch.set_num_threads(1)
    results = {}
    for shape in SHAPES:
        for vocab_size in (XLM_R, TRIMMED):
            with tempfile.TemporaryDirectory() as folder:
                results[f"{shape.name}, V = {vocab_size:,}"] = measured(shape, vocab_size, Path(folder), repeats)
    output.write_text(json.dumps(results, indent=1))
    click.echo(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
