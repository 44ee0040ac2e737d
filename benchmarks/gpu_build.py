"""The parts of gpu.py that build: teachers of full size with random weights, made on the device, and their cost."""

import hashlib
import multiprocessing
import statistics
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from floor import SAMPLE, batches_of, beside_the_floor, filled, seconds, settings_for, with_rows
from measuring import in_child, memory
from transformers import ModernBertConfig, ModernBertForMaskedLM, PreTrainedModel, XLMRobertaConfig, set_seed
from transformers import XLMRobertaForMaskedLM as XLMRoberta
from usual import USUAL_ROWS, usual_script

from cache_tools import Cache, open_cache
from cache_tools.attention import enable_capture
from cache_tools.build.pipeline import fill
from cache_tools.build.prepare import prepare
from cache_tools.build.resolve import find_inputs
from cache_tools.build.workers import Worker
from cache_tools.signals import MEASURES, TOKEN_ARRAYS
from cache_tools.teacher.forward import HostBatch, Launched, TeacherPass, collect, host_batch, seen_mask
from cache_tools.teacher.model import Teacher, split_head
from cache_tools.teacher.signals import errors_of
from cache_tools.text.model_tokenizer import load_teacher_tokenizer
from cache_tools.verify.rerun import recompute
from cache_tools.verify.tolerance import Deviations

SPREAD = 1.0  # of a layer's outputs: else all attention would be even, and
SHARPER = 3.0  # all tokens about as likely, so that nothing would be certain
ROOM = 2**26  # bytes that a process needs beside its tensors


@dataclass(frozen=True)
class Run:
    """The device, the folder for caches, and how much is measured: `rows` of 128 tokens are built, `compared` ones run
    again in float32 on the CPU, `batches` trained on. Teachers that are `small` have a few narrow layers."""

    device: torch.device
    folder: Path
    small: bool

    @property
    def rows(self) -> int:
        return 31 if self.small else 4096

    @property
    def compared(self) -> int:
        return 2 if self.small else 8

    @property
    def batches(self) -> int:
        return 1 if self.small else 50

    @property
    def repeats(self) -> int:
        return 2 if self.small else 3


def xlm_r(small: bool) -> PreTrainedModel:
    """AfroXLMR-large's shape."""
    layers, hidden, heads, vocab_size = (2, 64, 4, 8200) if small else (24, 1024, 16, 250_002)
    return XLMRoberta(
        XLMRobertaConfig(
            vocab_size=vocab_size, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=4 * hidden, max_position_embeddings=514, type_vocab_size=1,
            initializer_range=SPREAD * hidden**-0.5,
        )
    )  # fmt: skip


def modernbert(small: bool) -> PreTrainedModel:
    """mmBERT-base's shape."""
    layers, hidden, heads, vocab_size = (4, 64, 4, 8200) if small else (22, 768, 12, 256_000)
    return ModernBertForMaskedLM(
        ModernBertConfig(
            vocab_size=vocab_size, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=hidden * 3 // 2, pad_token_id=1, bos_token_id=0, eos_token_id=2, cls_token_id=0,
            sep_token_id=2, initializer_range=SPREAD * hidden**-0.5,
        )
    )  # fmt: skip


MODELS: dict[str, Callable[[bool], PreTrainedModel]] = {"XLM-R": xlm_r, "ModernBERT": modernbert}


def random_model(name: str, run: Run) -> PreTrainedModel:
    """On the CPU in float32; every process that makes it on one kind of device has the same."""
    set_seed(0)
    with run.device:
        model = MODELS[name](run.small)
        model.get_output_embeddings().weight.data *= SHARPER
    return model.cpu().float().eval().requires_grad_(False)


def random_teacher(name: str, run: Run) -> Teacher:
    model = random_model(name, run)
    enable_capture(model)
    return split_head(model, hashlib.sha256(name.encode()).hexdigest(), name)


def prepared(run: Run, name: str, teacher: Teacher, **options: Any) -> Cache:
    """A cache of the sample, in as many views as it takes, with rows and without any shard. `teacher` is on the CPU."""
    seq_len = options.get("seq_len", 128)
    settings = settings_for(
        run.folder / f"{name}.zarr", SAMPLE / "teacher", start_layers="none", device=str(run.device),
        rows_per_shard=max(64, run.rows // 16) * 128 // seq_len, **options,
    )  # fmt: skip
    settings = with_rows(settings, run.rows)
    prepare(find_inputs(settings), settings.out, teacher, load_teacher_tokenizer(settings.teacher))
    return open_cache(settings.out)


def count_peak_from_here(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_mib(device: torch.device) -> int:
    return round(torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else memory("VmHWM"))


def against_the_floor(run: Run, name: str, seq_len: int, dtype: str) -> dict[str, Any]:
    """Build ÷ the bare forward passes of the same batches with the head's product at the targets; idle; memory."""
    teacher = random_teacher(name, run)
    cache = prepared(run, "timed", teacher, seq_len=seq_len, dtype=dtype)
    teacher = teacher.to(run.device, getattr(torch, dtype))
    count_peak_from_here(run.device)
    found = beside_the_floor(cache, teacher, run.device, run.repeats)
    tokens = found["rows_per_second"] * seq_len
    return found | {"tokens_per_second": round(tokens), "peak_mib": peak_mib(run.device)}


def against_the_usual_script(run: Run, name: str, dtype: str) -> dict[str, Any]:
    """Seconds of a build ÷ seconds of what one would write today over the same rows, and the memory of both, each in a
    process of its own."""
    root = prepared(run, "usual", random_teacher(name, run), dtype=dtype).root
    build, usual = in_child(timed_build, run, root, name), in_child(timed_usual_script, run, root, name)
    return {
        "rows": build["rows"],
        "build_to_usual": round(build["seconds"] / usual["seconds"], 3),
        "memory_to_usual": round(build["peak_mib"] / usual["peak_mib"], 3),
        "seconds": [round(found["seconds"], 2) for found in (build, usual)],
        "peak_mib": [found["peak_mib"] for found in (build, usual)],
    }


def timed_build(run: Run, root: Path, name: str) -> dict[str, Any]:
    cache = open_cache(root)
    teacher = random_teacher(name, run).to(run.device, getattr(torch, cache.settings["dtype"]))
    count_peak_from_here(run.device)
    done = [filled(root, teacher, run.device) for _ in range(run.repeats + 1)]
    return {"seconds": statistics.median(one.seconds for one in done[1:]), "rows": done[0].rows}


def timed_usual_script(run: Run, root: Path, name: str) -> dict[str, Any]:
    cache = open_cache(root)
    model = random_model(name, run).to(run.device, getattr(torch, cache.settings["dtype"]))
    model.set_attn_implementation("eager")
    batches = batches_of(cache, USUAL_ROWS)
    count_peak_from_here(run.device)
    usual_script(model, batches[:1], run.folder, run.device)
    times = [
        seconds(lambda: usual_script(model, batches, run.folder, run.device), run.device) for _ in range(run.repeats)
    ]
    return {"seconds": statistics.median(times)}


def against_the_cpu(run: Run, name: str) -> dict[str, Any]:
    """Every stored array of a few rows in both half precisions, beside a float32 pass on the CPU: the errors of each
    measure, and whether they are within its tolerance."""
    cache = prepared(run, "compared", random_teacher(name, run))
    recipe, seen = cache.recipe, seen_mask(cache.vocabulary.id, cache.recipe.vocab_size)
    tokens = {n: a[: run.compared] for n, a in cache.read_tokens("train", 0)[0].items()}
    stored = {}
    for dtype in ("bfloat16", "float16"):
        on_device = TeacherPass(random_teacher(name, run).to(run.device, getattr(torch, dtype)), recipe, seen)
        stored[dtype] = tokens | collect(on_device.launch(host_batch(recipe, tokens, run.device.type == "cuda")))
        del on_device
    exact = TeacherPass(random_teacher(name, run), recipe, seen)
    result: dict[str, Any] = {}
    for dtype, arrays in stored.items():
        compared = Deviations(dtype, str(run.device), "float32", "cpu")
        beyond = compared.add(run.compared, errors_of(arrays, recompute(exact, arrays), recipe))
        numbers = {
            measure: [float(f"{n:.3g}") for n in (found.mean, found.largest)]
            + [compared.allowed(measure).mean, compared.allowed(measure).largest]
            for measure, found in compared.worst.items()
            if MEASURES[measure].unit != "share"
        }
        shares = {m: round(f.mean, 4) for m, f in compared.worst.items() if MEASURES[m].unit == "share"}
        result[dtype] = {"within": not beyond, "beyond": beyond, "mean, largest, allowed": numbers, "differ": shares}
    return result


def one_worker(run: Run, cache: Path, name: str, dtype: str, worker: Worker) -> dict[str, Any]:
    """Fill the worker's shards in a process of its own."""
    done = fill(open_cache(cache), random_teacher(name, run), run.device, threading.Event(), worker)
    return {"tokens": done.tokens, "seconds": done.seconds, "idle": done.idle, "peak_mib": peak_mib(run.device)}


def teacher_arrays(cache: Cache) -> dict[str, str]:
    """SHA-256 of each array of each shard that is the teacher's."""
    return {
        f"{key.group} {key.shard} {name}": hashlib.sha256(array.tobytes()).hexdigest()
        for key in cache.extent.keys()
        for name, array in cache.read_shard(*key).items()
        if name not in TOKEN_ARRAYS
    }


def two_workers(run: Run, name: str, dtype: str) -> dict[str, Any]:
    """One worker on the card, then two at once on another copy: tokens a second, and whether they give the same."""
    caches = [prepared(run, f"workers-{n}", random_teacher(name, run), dtype=dtype) for n in (1, 2)]
    digests, speeds, found = [], [], []
    for cache, count in zip(caches, (1, 2), strict=True):
        with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
            workers = [
                pool.submit(one_worker, run, cache.root, name, dtype, Worker(index, count)) for index in range(count)
            ]
            done = [worker.result() for worker in workers]
        found.append(done)
        speeds.append(sum(one["tokens"] for one in done) / max(one["seconds"] for one in done))
        digests.append(teacher_arrays(open_cache(cache.root)))
    return {
        "same_arrays": digests[0] == digests[1],
        "two_to_one": round(speeds[1] / speeds[0], 3),
        "idle": [[round(one["idle"], 4) for one in done] for done in found],
        "peak_mib": [[one["peak_mib"] for one in done] for done in found],
    }


def limit_memory(run: Run, teacher_pass: TeacherPass, batches: list[HostBatch]) -> None:
    """Leave room for the first of these batches, and not for the second, which is larger. On a CPU, whose memory cannot
    be limited so finely, the second is refused."""
    if run.device.type == "cuda":
        needed = []
        for batch in batches:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(run.device)
            collect(teacher_pass.launch(batch))
            teacher_pass.head.memory = torch.empty(0, device=run.device)
            needed.append(torch.cuda.max_memory_reserved(run.device))
        limit = (needed[0] + needed[1]) / 2 + ROOM
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(run.device).total_memory)
        return
    most, launch = len(batches[0].length), TeacherPass.launch

    def limited(self: TeacherPass, batch: HostBatch) -> Launched:
        if len(batch.length) > most:
            raise torch.OutOfMemoryError(f"more than {most} rows")
        return launch(self, batch)

    TeacherPass.launch = limited  # type: ignore[method-assign]


def fill_without_room(run: Run, root: Path, name: str) -> dict[str, Any]:
    cache = open_cache(root)
    teacher = random_teacher(name, run).to(run.device, getattr(torch, cache.settings["dtype"]))
    tokens, size = cache.read_tokens("train", 0)[0], cache.settings["batch_size"]
    teacher_pass = TeacherPass(teacher, cache.recipe, seen_mask(cache.vocabulary.id, cache.recipe.vocab_size))
    batches = [host_batch(cache.recipe, {n: a[:rows] for n, a in tokens.items()}) for rows in (size // 4, size)]
    limit_memory(run, teacher_pass, batches)
    del teacher_pass
    done = fill(cache, teacher, run.device, threading.Event())
    return {"rows": done.rows}


def out_of_memory(run: Run, name: str, dtype: str) -> dict[str, Any]:
    """A build whose batches do not fit: the sizes that it asked for and ended with, and whether all is built."""
    size = 16 if run.small else 128
    cache = prepared(run, "scarce", random_teacher(name, run), dtype=dtype, batch_size=size)
    in_child(fill_without_room, run, cache.root, name)
    built = open_cache(cache.root)
    records = [built.record(*key) for key in built.extent.keys()]
    sizes = sorted({int(record.numerics["batch_size"]) for record in records if record is not None})
    return {"asked_for": size, "ended_with": sizes, "complete": None not in records}


def facts(device: torch.device, small: bool) -> dict[str, Any]:
    """The machine and its versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "transformers": transformers.__version__}
    return {"date": date.today().isoformat(), "device": name, "small": small} | versions
