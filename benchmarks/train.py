"""Measure the cost of training a student from a cache beside the alternatives, in time and memory.

Prints JSON part by part and writes it. Times are medians of interleaved steps on the same rows. The cache has real
Kinyarwanda in XLM-R's 250,002 pieces and a small random teacher: what a step costs does not depend on its wisdom.

    python benchmarks/train.py --shared ../shared --output train.json
"""

import json
import lzma
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import reader
import torch
from measuring import in_child, memory
from torch import Tensor
from torch.nn.functional import cross_entropy, gelu, kl_div
from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM, set_seed
from whole_trainings import killed, memory_with_ten_times_the_cache, starts

from cache_tools import Cache, build_cache, open_cache
from cache_tools.attention import enable_capture
from cache_tools.settings import BuildSettings
from comet.preparation import choose_vocabulary
from comet.student.model import new_student
from comet.student.shape import COMET
from comet.train.dataset import CacheRows, collate, in_vocabulary, shards_of
from comet.train.distiller import Distiller
from comet.train.objective import DEFAULT

REPEATS = 7
CPU = torch.device("cpu")
Batch = dict[str, Tensor]


def random_model(hidden: int, layers: int) -> XLMRobertaForMaskedLM:
    set_seed(0)
    return XLMRobertaForMaskedLM(
        XLMRobertaConfig(
            vocab_size=250_002,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            intermediate_size=4 * hidden,
            max_position_embeddings=514,
            type_vocab_size=1,
        )
    )


def small_teacher(folder: Path, shared: Path) -> Path:
    """Two layers of 64 with XLM-R's tokenizer."""
    source = shared / "data/xlm-roberta-tokenizer"
    random_model(64, 2).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(lzma.decompress((source / "tokenizer.json.xz").read_bytes()))
    shutil.copyfile(source / "tokenizer_config.json", folder / "tokenizer_config.json")
    return folder


class Step:
    """One training step of the paper's student, 6 × 256, from the cache: forward, backward, fused AdamW."""

    def __init__(
        self,
        cache: Cache,
        vocabulary: str,
        attention: float,
        bf16: bool = False,
        recompute: bool = False,
        device: torch.device = CPU,
    ) -> None:
        self.device, self.vocabulary = device, choose_vocabulary(vocabulary, [cache])
        student = new_student(COMET, [cache], self.vocabulary, dropout=0.0, seed=0)
        recipe = replace(DEFAULT, attention_weight=attention)
        self.distiller = Distiller(student, cache.recipe, recipe, self.vocabulary, bf16).train().to(device)
        if recompute:
            self.distiller.activation_checkpointing_enable()
        self.optimizer = torch.optim.AdamW(self.distiller.parameters(), lr=1e-4, fused=True)

    def batch(self, cache: Cache, rows: int) -> Batch:
        arrays = CacheRows(shards_of([cache], "train"), list(cache.extent.arrays)).__getitems__(range(rows))
        batch = in_vocabulary(collate(arrays, cache.recipe), self.vocabulary, cache.recipe)
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def __call__(self, batch: Batch) -> None:
        self.distiller(**batch)["loss"].backward()
        self.finish()

    def finish(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class PlainStep(Step):
    """The same student without a teacher: masked positions only, SDPA, torch's cross-entropy."""

    def __call__(self, batch: Batch) -> None:
        student, head = self.distiller.student, self.distiller.student.lm_head
        mask = torch.arange(batch["input_ids"].shape[1], device=self.device) < batch["length"][:, None]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.distiller.bf16):
            hidden = student.roberta(batch["input_ids"], attention_mask=mask).last_hidden_state
        hidden = hidden[batch["target_row"], batch["target_position"]].float()
        cross_entropy(head.decoder(head.layer_norm(gelu(head.dense(hidden)))), batch["target_id"]).backward()
        self.finish()


class UsualStep(Step):
    """Stock forward at all positions, full log-softmax of both models, as most scripts distil; attention is left out.

    `teacher_logits` [B, L, V] stand for a teacher, whose own cost is not counted.
    """

    def __call__(self, batch: Batch) -> None:
        student = self.distiller.student
        mask = torch.arange(batch["input_ids"].shape[1]) < batch["length"][:, None]
        logits = student(batch["input_ids"], attention_mask=mask).logits
        teacher = torch.zeros_like(logits)
        kl_div(logits.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True).backward()
        self.finish()


def step_of(kind: str, cache: Cache) -> Step:
    classes: dict[str, Callable[[], Step]] = {
        "cache, logits only": lambda: Step(cache, "full", 0.0),
        "cache, attention of six layers": lambda: Step(cache, "full", 1.0),
        "plain": lambda: PlainStep(cache, "full", 0.0),
        "cache, logits only, trimmed": lambda: Step(cache, "trimmed", 0.0),
        "cache, attention of six layers, trimmed": lambda: Step(cache, "trimmed", 1.0),
        "plain, trimmed": lambda: PlainStep(cache, "trimmed", 0.0),
        "cache, attention of six layers, bf16": lambda: Step(cache, "full", 1.0, bf16=True),
        "cache, attention of six layers, recomputed": lambda: Step(cache, "full", 1.0, recompute=True),
        "cache, attention of six layers, bf16, recomputed": lambda: Step(cache, "full", 1.0, bf16=True, recompute=True),
        "cache, attention of six layers, trimmed, bf16": lambda: Step(cache, "trimmed", 1.0, bf16=True),
        "usual": lambda: UsualStep(cache, "full", 0.0),
    }
    return classes[kind]()


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def interleaved(kinds: list[str], cache: Cache, rows: int, repeats: int = REPEATS) -> dict[str, float]:
    """Median seconds of one step of each kind, the first one left out."""
    steps = {kind: step_of(kind, cache) for kind in kinds}
    batches = {kind: step.batch(cache, rows) for kind, step in steps.items()}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(repeats + 1):
        for kind, step in steps.items():
            elapsed = timed(lambda s=step, b=batches[kind]: s(b))
            if turn:
                times[kind].append(elapsed)
    return {kind: statistics.median(found) for kind, found in times.items()}


def against_plain(root: Path) -> dict[str, Any]:
    cache, result = open_cache(root), {}
    for suffix in ("", ", trimmed"):
        kinds = [f"{kind}{suffix}" for kind in ("cache, logits only", "cache, attention of six layers", "plain")]
        seconds = interleaved(kinds, cache, 16)
        for kind in kinds:
            result[kind] = {"seconds": round(seconds[kind], 3), "ratio": round(seconds[kind] / seconds[kinds[2]], 3)}
    return result


def waiting_for_data(root: Path) -> dict[str, Any]:
    """The share of the time that goes into rows, in the trainer's own order, beside a trimmed student's steps."""
    cache = open_cache(root)
    step = step_of("cache, attention of six layers, trimmed, bf16", cache)
    rows = CacheRows(shards_of([cache], "train"), [n for n in cache.extent.arrays if n not in ("row_key",)])
    order = iter(rows.sampler(0, 1.0))
    waiting = working = 0.0
    for turn in range(25):
        index = [next(order) for _ in range(16)]
        started = time.perf_counter()
        batch = in_vocabulary(collate(rows.__getitems__(index), cache.recipe), step.vocabulary, cache.recipe)
        elapsed = timed(lambda b=batch: step(b))
        if turn:
            waiting, working = waiting + time.perf_counter() - started - elapsed, working + elapsed
    return {"share": round(waiting / (waiting + working), 4)}


def reading(root: Path, raw: Path) -> dict[str, Any]:
    """What reader.py says of this cache, on one thread."""
    torch.set_num_threads(1)
    raw.mkdir()
    return reader.measure(root, raw, batch_size=32, repeats=9)


def teacher_in_the_loop(root: Path) -> dict[str, Any]:
    """A step with a teacher of AfroXLMR-large's shape running beside the full-vocabulary student."""
    cache = open_cache(root)
    teacher = random_model(1024, 24).eval().requires_grad_(False)
    enable_capture(teacher)
    step = Step(cache, "full", 1.0)
    batch = step.batch(cache, 16)
    mask = torch.arange(batch["input_ids"].shape[1]) < batch["length"][:, None]

    def work() -> None:
        with torch.inference_mode():
            hidden = teacher.roberta(batch["input_ids"], attention_mask=mask).last_hidden_state
            hidden = hidden[batch["target_row"], batch["target_position"]]
            features = teacher.lm_head.layer_norm(gelu(teacher.lm_head.dense(hidden)))
            target = teacher.lm_head.decoder(features).softmax(-1)  # [T, V]
        student, _ = step.distiller.features(batch)
        logprob = step.distiller.student.lm_head.decoder(student).log_softmax(-1)
        kl_div(logprob, target.clone(), reduction="batchmean").backward()
        step.finish()

    work()
    return {"seconds": statistics.median(timed(work) for _ in range(2))}


def from_the_cache(root: Path, kind: str, rows: int, turns: int) -> dict[str, Any]:
    cache = open_cache(root)
    step = step_of(kind, cache)
    batch = step.batch(cache, rows)
    step(batch)
    return {"seconds": statistics.median(timed(lambda: step(batch)) for _ in range(turns))}


def memory_above_the_model(root: Path) -> dict[str, Any]:
    start = "cache, attention of six layers"
    kinds = (start, f"{start}, bf16", f"{start}, recomputed", f"{start}, bf16, recomputed")
    seconds = in_child(interleaved, list(kinds), open_cache(root), 32)
    return {
        kind: {"mib": in_child(peak_above_the_model, root, kind)["mib"], "seconds": round(seconds[kind], 3)}
        for kind in kinds
    }


def peak_above_the_model(root: Path, kind: str) -> dict[str, Any]:
    """Peak of steps of 32 rows above a model whose optimiser has its states."""
    cache = open_cache(root)
    step = step_of(kind, cache)
    small, large = step.batch(cache, 1), step.batch(cache, 32)
    step(small)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    for _ in range(2):
        step(large)
    return {"mib": round(memory("VmHWM") - before)}


def against_the_loop(root: Path) -> dict[str, Any]:
    loop = in_child(teacher_in_the_loop, root)
    ours = {
        name: in_child(from_the_cache, root, kind, 16, 5)
        for name, kind in (
            ("trimmed", "cache, attention of six layers, trimmed"),
            ("trimmed, bf16", "cache, attention of six layers, trimmed, bf16"),
            ("full", "cache, attention of six layers"),
        )
    }
    return {
        name: {
            "times_faster": round(loop["seconds"] / found["seconds"], 1),
            "memory_share": round(found["peak_mib"] / loop["peak_mib"], 3),
        }
        for name, found in ours.items()
    }


def against_the_usual(root: Path) -> dict[str, Any]:
    usual = in_child(from_the_cache, root, "usual", 8, 2)
    return {
        name: {
            "times_faster": round(usual["seconds"] / in_child(from_the_cache, root, kind, 8, 7)["seconds"], 1),
        }
        for name, kind in (
            ("trimmed", "cache, attention of six layers, trimmed"),
            ("trimmed, bf16", "cache, attention of six layers, trimmed, bf16"),
            ("full", "cache, logits only"),
        )
    } | {"usual_peak_mib": usual["peak_mib"]}


@click.command(help=__doc__.split("\n")[0])
@click.option(
    "--shared", type=click.Path(exists=True, path_type=Path), required=True, help="Folder of the shared data."
)
@click.option("--output", type=click.Path(path_type=Path), default="train.json", show_default=True)
@click.option("--only", multiple=True, help="Parts to run.  [default: all]")
def main(shared: Path, output: Path, only: tuple[str, ...]) -> None:
    shared = shared.resolve()
    results: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as root:
        folder, cache = Path(root), Path(root) / "kin.zarr"
        settings = BuildSettings(
            out=cache, language="kin", teacher=str(small_teacher(folder / "teacher", shared)),
            text=(str(shared / "data/text/kin.txt.xz"),), max_tokens=150_000, rows_per_shard=256, views=1,
            weak_teacher=True,
        )  # fmt: skip
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "against plain training": lambda: in_child(against_plain, cache),
            "waiting for data": lambda: in_child(waiting_for_data, cache),
            "reader": lambda: in_child(reading, cache, folder / "raw"),
            "teacher in the loop": lambda: against_the_loop(cache),
            "usual script": lambda: against_the_usual(cache),
            "memory above model and optimiser": lambda: memory_above_the_model(cache),
        }
        whole: dict[str, Callable[[], dict[str, Any]]] = {
            "memory with ten times the cache": lambda: memory_with_ten_times_the_cache(folder, shared),
            "starts": lambda: starts(folder, shared),
            "killed": lambda: killed(folder / "killed"),
        }
        chosen = {name: part for name, part in (parts | whole).items() if not only or name in only}
        if set(chosen) & set(parts):
            made = build_cache(settings)
            results["cache"] = {"rows": made.recipe.train_rows, "V_seen": len(made.vocabulary.id)}
        for name, part in chosen.items():
            started = time.monotonic()
            results[name] = part() | {"took": round(time.monotonic() - started)}
            print(json.dumps({name: results[name]}, indent=1, ensure_ascii=False), flush=True)
    output.write_text(json.dumps(results, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
