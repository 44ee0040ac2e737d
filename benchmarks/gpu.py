r"""Measure what needs a GPU: builds, training, fine-tuning and the tests marked gpu, in ten minutes.

Needs no network and no data: teachers of AfroXLMR-large's and mmBERT-base's shape get random weights on the device.
The most important parts come first; each result is printed and written as soon as it is there, so that a run that is
killed leaves what it had.

    PYTHONPATH=. timeout 600 python benchmarks/gpu.py --output gpu.json
    PYTHONPATH=. python benchmarks/gpu.py --device cpu --small

Where torch and transformers are and no network is, the rest comes as wheels, 3 MB, from a machine that has one. Name
the Python that they are for.

    pip download --only-binary :all: --python-version 3.12 --platform manylinux2014_x86_64 -d wheels --no-deps \
        accelerate donfig google-crc32c 'numcodecs!=0.17.0' psutil tomli-w 'zarr>=3.1,<3.5' pytest iniconfig pluggy
    pip install --no-index --no-deps wheels/*.whl

The project itself is not installed, so its bounds hold nothing up. With transformers 5.17 the other parts have run on a
CPU, the tests with huggingface_hub 1.5 (all skipped there). `--set activation_checkpointing` came with 5.23.
"""

import gc
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click
import torch
from gpu_build import (
    Run,
    against_the_cpu,
    against_the_floor,
    against_the_usual_script,
    facts,
    out_of_memory,
    two_workers,
)
from gpu_evaluate import fine_tuning
from gpu_train import gpu_tests, resume, training

from cache_tools.errors import first_line
from cache_tools.models import choose_device

DTYPES = {"bf16": "bfloat16", "fp16": "float16"}


def floor_of(name: str, seq_len: int, dtype: str) -> Callable[[Run], dict[str, Any]]:
    return lambda run: against_the_floor(run, name, seq_len, DTYPES[dtype])


PARTS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "XLM-R 128 bf16": floor_of("XLM-R", 128, "bf16"),
    "XLM-R values": lambda run: against_the_cpu(run, "XLM-R"),
    "training": lambda run: training(run, "XLM-R"),
    "XLM-R 512 bf16": floor_of("XLM-R", 512, "bf16"),
    "resume": resume,
    "XLM-R 128 fp16": floor_of("XLM-R", 128, "fp16"),
    "ModernBERT 128 bf16": floor_of("ModernBERT", 128, "bf16"),
    "out of memory": lambda run: out_of_memory(run, "XLM-R", "bfloat16"),
    "tests": gpu_tests,
    "usual script": lambda run: against_the_usual_script(run, "XLM-R", "bfloat16"),
    "fine-tuning": fine_tuning,
    "ModernBERT values": lambda run: against_the_cpu(run, "ModernBERT"),
    "two workers": lambda run: two_workers(run, "ModernBERT", "bfloat16"),
    "ModernBERT 512 bf16": floor_of("ModernBERT", 512, "bf16"),
    "XLM-R 512 fp16": floor_of("XLM-R", 512, "fp16"),
    "ModernBERT 128 fp16": floor_of("ModernBERT", 128, "fp16"),
    "ModernBERT 512 fp16": floor_of("ModernBERT", 512, "fp16"),
}
"""By importance."""


def measured(part: Callable[[Run], dict[str, Any]], run: Run) -> dict[str, Any]:
    """Run a part in a folder of its own. One that fails says why and ends no other."""
    started = time.monotonic()
    try:
        with redirect_stdout(sys.stderr):
            found = part(run)
    except Exception as error:
        traceback.print_exc()
        found = {"failed": f"{type(error).__name__}: {first_line(error)}"}
    gc.collect()
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    return found | {"took": round(time.monotonic() - started, 1)}


@click.command(help=__doc__.split("\n")[0])
@click.option("--device", default="auto", show_default=True)
@click.option("--small", is_flag=True, help="Tiny teachers and few rows, to try this where there is no GPU.")
@click.option("--only", multiple=True, type=click.Choice(list(PARTS)), help="Parts to run.  [default: all]")
@click.option("--output", type=click.Path(path_type=Path), default="gpu.json", show_default=True)
def main(device: str, small: bool, only: tuple[str, ...], output: Path) -> None:
    chosen = choose_device(device)
    results: dict[str, Any] = facts(chosen, small)
    with tempfile.TemporaryDirectory() as root:
        for number, name in enumerate(only or PARTS):
            folder = Path(root) / str(number)
            folder.mkdir()
            results[name] = measured(PARTS[name], Run(chosen, folder, small))
            print(json.dumps({name: results[name]}, ensure_ascii=False), flush=True)
            output.write_text(json.dumps(results, indent=1, ensure_ascii=False))
    if any("failed" in found for found in results.values() if isinstance(found, dict)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
