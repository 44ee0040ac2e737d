"""Measure the cost of a build beside the teacher's bare forward pass: time, memory and bytes.

Prints a table and writes JSON. Times are medians of interleaved runs on the same rows; the text is the sample's and
the timed teacher has random weights, which changes no cost. With `--shared` bytes are measured on real text and a
real teacher. Runs as it stands on a GPU, there with the shape of AfroXLMR-large.

    python benchmarks/build.py --shared ../shared --output build.json
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from floor import SAMPLE, batches_of, beside_the_floor, filled, prepared, seconds, settings_for, with_rows
from measuring import in_child
from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM, set_seed
from usual import USUAL_ROWS, usual_script

from cache_tools import build_cache, open_cache
from cache_tools.build.dry_run import estimate
from cache_tools.build.pipeline import fill
from cache_tools.models import choose_device
from cache_tools.settings import BuildSettings
from cache_tools.teacher.forward import HostBatch, TeacherPass, collect, host_batch, seen_mask
from cache_tools.teacher.model import load_teacher

REPOSITORY = Path(__file__).parents[1]
REPEATS = 5


@dataclass(frozen=True)
class Shape:
    """A teacher's layers, width and heads, and how many rows of 128 tokens it is timed on."""

    layers: int
    hidden: int
    heads: int
    rows: int
    vocab_size: int = 250_002


SHAPES = {"cpu": Shape(6, 512, 8, 93), "cuda": Shape(24, 1024, 16, 16384)}


def random_teacher(folder: Path, shape: Shape) -> Path:
    """A teacher of this shape with the sample's tokenizer, which knows the first 8,000 of its tokens."""
    teacher = folder / "teacher"
    shutil.copytree(SAMPLE / "teacher", teacher, ignore=shutil.ignore_patterns("model.safetensors", "config.json"))
    set_seed(0)
    config = XLMRobertaConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.hidden, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, intermediate_size=4 * shape.hidden, max_position_embeddings=514,
        type_vocab_size=1,
    )  # fmt: skip
    XLMRobertaForMaskedLM(config).save_pretrained(teacher)
    return teacher


def against_the_floor(out: Path, device: torch.device) -> dict[str, Any]:
    cache = open_cache(out)
    teacher = load_teacher(str(out.parent / "teacher")).to(device, getattr(torch, cache.settings["dtype"]))
    return beside_the_floor(cache, teacher, device, REPEATS)


def build_once(out: Path, device: torch.device) -> dict[str, Any]:
    done = filled(out, load_teacher(str(out.parent / "teacher")), device)
    return {"rows_per_second": done.rows / done.seconds}


def usual_once(out: Path, device: torch.device) -> dict[str, Any]:
    cache = open_cache(out)
    model = XLMRobertaForMaskedLM.from_pretrained(out.parent / "teacher", attn_implementation="eager").eval()
    model = model.to(device, getattr(torch, cache.settings["dtype"]))
    batches = batches_of(cache, USUAL_ROWS)[:3]
    with tempfile.TemporaryDirectory() as folder:
        usual_script(model, batches[:1], Path(folder), device)
        elapsed = seconds(lambda: usual_script(model, batches, Path(folder), device), device)
    return {"rows_per_second": sum(len(tokens["length"]) for tokens in batches) / elapsed}


def against_the_usual_script(out: Path, device: torch.device) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {"build": [], "usual": []}
    for _ in range(2):
        runs["build"].append(in_child(build_once, out, device))
        runs["usual"].append(in_child(usual_once, out, device))
    speed = {name: statistics.median(r["rows_per_second"] for r in found) for name, found in runs.items()}
    peak = {name: max(r["peak_mib"] for r in found) for name, found in runs.items()}
    return {
        "times_faster": round(speed["build"] / speed["usual"], 2),
        "memory_share": round(peak["build"] / peak["usual"], 3),
        "peak_mib": peak,
    }


def prepare_once(settings: BuildSettings) -> dict[str, Any]:
    prepared(settings)
    return {"rows": open_cache(settings.out).recipe.train_rows}


def fill_once(settings: BuildSettings) -> dict[str, Any]:
    done = fill(
        open_cache(settings.out), load_teacher(settings.teacher), choose_device(settings.device), threading.Event()
    )
    return {"rows_per_second": done.rows / done.seconds}


def corpus_size(folder: Path) -> dict[str, Any]:
    """Peak memory and speed with ten times the corpus: the sample's sentences, every copy with words of its own."""
    sentences = (SAMPLE / "text.txt").read_text().splitlines()
    result: dict[str, Any] = {}
    for name, copies in (("one", 20), ("ten", 200)):
        text = folder / f"{name}.txt"
        text.write_text("\n".join(f"{sentence} {copy}" for copy in range(copies) for sentence in sentences))
        settings = replace(
            settings_for(folder / f"{name}.zarr", SAMPLE / "teacher", rows_per_shard=16), text=(str(text),)
        )
        result[name] = {"prepare": in_child(prepare_once, settings), "fill": in_child(fill_once, settings)}
    return result | {
        f"{stage}_memory_ratio": round(result["ten"][stage]["peak_mib"] / result["one"][stage]["peak_mib"], 3)
        for stage in ("prepare", "fill")
    }


def bytes_per_token(folder: Path, shared: Path | None) -> dict[str, Any]:
    """Bytes of each array per token of text, on a real teacher."""
    result: dict[str, Any] = {}
    profiles: dict[str, dict[str, Any]] = {
        "default": {},
        "compact": {"attention_queries": 32},
        "logits only": {"attention_layers": "none"},
        "best 64": {"keep": "topk"},
    }
    for number, (profile, options) in enumerate(profiles.items()):
        settings = settings_for(folder / f"{number}.zarr", SAMPLE / "teacher", **options)
        if shared is not None:
            text = (str(shared / "data/text/kin.txt.xz"),)
            settings = replace(settings, teacher=str(shared / "teacher"), text=text, max_tokens=200_000)
        cache = build_cache(settings)
        tokens = cache.provenance["text_tokens"]
        arrays = {
            name: sum(f.stat().st_size for f in (cache.root / "train" / name / "c").rglob("*") if f.is_file())
            * (cache.recipe.train_rows + cache.recipe.validation_rows)
            / cache.recipe.train_rows
            / tokens
            for name in cache.specs["train"]
        }
        result[profile] = {name: round(v, 2) for name, v in arrays.items()} | {"rows": round(sum(arrays.values()), 2)}
        result["tokens"] = tokens
    return result


def dry_run(folder: Path, teacher: Path, rows: int) -> dict[str, Any]:
    """The estimate against what the build then takes."""
    settings = with_rows(settings_for(folder / "dry.zarr", teacher, rows_per_shard=32), rows)
    expected = estimate(settings)
    prepared(settings)
    done = fill(
        open_cache(settings.out), load_teacher(settings.teacher), choose_device(settings.device), threading.Event()
    )
    size = sum(path.stat().st_size for path in settings.out.rglob("*") if path.is_file())
    return {
        "bytes_ratio": round(expected.bytes / size, 3),
        "seconds_ratio": round(expected.teacher_seconds / done.seconds, 3),
    }


def torchrun(folder: Path) -> dict[str, Any]:
    """Two ranks on one folder: the same bytes as one, and how long each had nothing to do."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    said = ""
    for name, launcher in (
        ("one", []),
        ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]),
    ):
        command = [sys.executable, *launcher, "-m", "cache_tools", "build", "--lang", "kin", "--sample"]
        command += ["--rows-per-shard", "32", "--out", str(folder / f"{name}.zarr")]
        said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    one, two = (open_cache(folder / f"{name}.zarr").cache_id for name in ("one", "two"))
    return {"same_cache_id": one == two, "idle": re.findall(r"worker (\d) of 2.*idle ([\d.]+%)", said)}


def growth(folder: Path, teacher: Path, rows: int, device: torch.device) -> dict[str, Any]:
    """Seconds per token with other options, relative to the defaults, each in turn with them."""
    variants: dict[str, dict[str, Any]] = {
        "defaults": {},
        "k = 16": {"top_k": 16},
        "k = 256": {"top_k": 256},
        "temperatures 1 and 2": {"temperatures": (1.0, 2.0)},
        "best 64": {"keep": "topk"},
        "no attention": {"attention_layers": "none"},
        "attention of every query": {"attention_queries": 1},
        "512 tokens in a row": {"seq_len": 512},
    }
    passes: dict[str, tuple[TeacherPass, HostBatch]] = {}
    loaded = load_teacher(str(teacher))
    for number, (name, options) in enumerate(variants.items()):
        settings = with_rows(settings_for(folder / f"{number}.zarr", teacher, **options), rows)
        prepared(settings)
        cache = open_cache(settings.out)
        tokens, size = cache.read_tokens("train", 0)[0], cache.settings["batch_size"]
        loaded = loaded.to(device, getattr(torch, cache.settings["dtype"]))
        seen = seen_mask(cache.vocabulary.id, cache.recipe.vocab_size)
        teacher_pass = TeacherPass(loaded, cache.recipe, seen)
        if passes:
            teacher_pass.head = passes["defaults"][0].head  # the same tokens: one copy of the weights will do
        passes[name] = teacher_pass, host_batch(cache.recipe, {n: a[:size] for n, a in tokens.items()})
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(4):
        for name, (teacher_pass, batch) in passes.items():
            elapsed = seconds(lambda p=teacher_pass, b=batch: collect(p.launch(b)), device)
            if turn:
                times[name].append(elapsed / batch.tokens)
    medians = {name: statistics.median(found) for name, found in times.items()}
    return {name: round(found / medians["defaults"], 3) for name, found in medians.items()}


@click.command(help=__doc__.split("\n")[0])
@click.option("--shared", type=click.Path(exists=True, path_type=Path), help="Folder of the shared data.")
@click.option("--output", type=click.Path(path_type=Path), default="build.json", show_default=True)
@click.option("--only", multiple=True, help="Parts to run.  [default: all]")
def main(shared: Path | None, output: Path, only: tuple[str, ...]) -> None:
    device = choose_device("auto")
    shape = SHAPES[device.type]
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "teacher": f"{shape.layers}×{shape.hidden}, V = {shape.vocab_size:,}",
    }

    def at_length(seq_len: int) -> Callable[[Path, Path], dict[str, Any]]:
        def part(folder: Path, teacher: Path) -> dict[str, Any]:
            out = folder / "timed.zarr"
            per_shard = max(64, shape.rows // 16) * 128 // seq_len
            settings = settings_for(out, teacher, seq_len=seq_len, rows_per_shard=per_shard)
            prepared(with_rows(settings, shape.rows if seq_len == 128 else shape.rows // 2))
            found = in_child(against_the_floor, out, device)
            return found | (against_the_usual_script(out, device) if seq_len == 128 else {})

        return part

    parts: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
        "L = 128": at_length(128),
        "L = 512": at_length(512),
        "growth": lambda folder, teacher: growth(folder, teacher, shape.rows, device),
        "dry run": lambda folder, teacher: dry_run(folder, teacher, shape.rows),
        "corpus": lambda folder, teacher: corpus_size(folder),
        "bytes per token": lambda folder, teacher: bytes_per_token(folder, shared and shared.resolve()),
        "torchrun": lambda folder, teacher: torchrun(folder),
    }
    with tempfile.TemporaryDirectory() as root:
        teacher = random_teacher(Path(root), shape)
        for name, part in parts.items():
            if only and name not in only:
                continue
            folder = Path(root) / "part"
            folder.mkdir()
            (folder / "teacher").symlink_to(teacher)
            started = time.monotonic()
            results[name] = part(folder, folder / "teacher") | {"took": round(time.monotonic() - started)}
            shutil.rmtree(folder)
            print(json.dumps({name: results[name]}, indent=1, ensure_ascii=False), flush=True)
    output.write_text(json.dumps(results, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
