"""The pipeline: memory that runs out, builders that get in each other's way, several ranks."""

import re
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.builds import Running, build_arguments, digests
from helpers.scarce_memory import out_of_memory_above
from helpers.settings import build_settings
from tqdm import tqdm

from cache_tools import build_cache, open_cache
from cache_tools.build import pipeline
from cache_tools.build.pipeline import ShardBuffer, Throughput, fill, missing_shards
from cache_tools.build.prepare import prepare
from cache_tools.build.resolve import find_inputs
from cache_tools.errors import CometError
from cache_tools.models import choose_device
from cache_tools.settings import BuildSettings
from cache_tools.store.ledger import ShardKey
from cache_tools.teacher.device import choose_batch_size
from cache_tools.teacher.forward import DeviceTimer, HostBatch, Launched
from cache_tools.teacher.model import load_teacher

CPU = torch.device("cpu")


class SetOnceAsked(threading.Event):
    """A stop that comes while the first shard is computed: it is not set when it is asked for the first time."""

    def is_set(self) -> bool:
        before = super().is_set()
        self.set()
        return before


@pytest.fixture
def settings(sample_teacher: Path, sample_text: Path, tmp_path: Path) -> BuildSettings:
    return build_settings(tmp_path / "kin.zarr", sample_teacher, sample_text, max_tokens=None, seq_len=64, keep="topk")


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried …"),
    ],
)
def test_out_of_memory_restarts_the_shard_in_smaller_batches(
    settings: BuildSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: RuntimeError
) -> None:
    tried = out_of_memory_above(5, monkeypatch, error)
    cache = build_cache(replace(settings, batch_size=16))
    rows = cache.recipe.shard_rows("validation", 0)
    assert tried[:2] == [min(16, rows), min(8, rows)]
    assert max(tried[2:]) <= 8
    assert "out of memory: continuing with batches of 8 rows" in capsys.readouterr().err
    sizes = {
        cache.record(group, s).numerics["batch_size"] for group in cache.specs for s in cache.extent.indices(group)
    }
    assert sizes == {"4"}
    monkeypatch.undo()
    same = build_cache(replace(settings, batch_size=4, out=settings.out.parent / "same.zarr"))
    for group in cache.specs:
        for shard in cache.extent.indices(group):
            for name, array in same.read_shard(group, shard).items():
                np.testing.assert_array_equal(array, cache.read_shard(group, shard)[name])


def test_a_row_that_does_not_fit_ends_the_build(settings: BuildSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_memory_above(0, monkeypatch, torch.OutOfMemoryError("out of memory"))
    with pytest.raises(CometError, match=r"^out of memory with one row at a time; use another --device"):
        build_cache(settings)


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    settings: BuildSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = out_of_memory_above(0, monkeypatch, RuntimeError("the device is gone"))
    with pytest.raises(RuntimeError, match="the device is gone"):
        build_cache(settings)
    assert len(tried) == 1


def test_the_bar_of_a_stopped_build_ends_with_the_shard_in_work(
    settings: BuildSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = find_inputs(settings)
    teacher, tokenizer = inputs.load_teacher()
    prepare(inputs, settings.out, teacher, tokenizer)
    cache = open_cache(settings.out)
    bars: list[tqdm] = []
    show = pipeline.show_progress
    monkeypatch.setattr(pipeline, "show_progress", lambda **options: bars.append(show(**options)) or bars[-1])
    done = fill(cache, teacher, CPU, SetOnceAsked())
    assert len(missing_shards(open_cache(settings.out))) == len([*cache.extent.keys()]) - 1
    assert bars[0].n == bars[0].total == done.tokens


def test_once_the_time_is_over_no_shard_is_begun(settings: BuildSettings) -> None:
    inputs = find_inputs(settings)
    teacher, tokenizer = inputs.load_teacher()
    prepare(inputs, settings.out, teacher, tokenizer)
    cache, stop = open_cache(settings.out), threading.Event()
    stop.set()
    assert fill(cache, teacher, CPU, stop).tokens == 0
    assert set(missing_shards(open_cache(settings.out))) == {*cache.extent.keys()}


@pytest.mark.slow
def test_two_builders_of_the_same_shards_do_no_harm(settings: BuildSettings, tmp_path: Path) -> None:
    build_cache(settings)
    reference = digests(settings.out)
    shared = replace(settings, out=tmp_path / "shared.zarr")
    with pytest.raises(CometError, match="stopped with"):
        build_cache(shared, max_hours=1e-9)  # which is over before the first shard
    cache = open_cache(shared.out)
    teacher = load_teacher(settings.teacher)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            fill(cache, teacher, CPU, threading.Event())
        except BaseException as error:
            errors.append(error)

    builders = [threading.Thread(target=run) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert not errors
    assert digests(shared.out) == reference


def test_two_ranks_make_the_cache_that_one_makes(
    settings: BuildSettings, sample_teacher: Path, sample_text: Path, tmp_path: Path
) -> None:
    """With the variables by which torchrun tells a process which one it is."""
    options = {"seq_len": 64, "rows_per_shard": 16, "top_k": 8}

    def start(name: str, **rank: str) -> Running:
        arguments = build_arguments(tmp_path / name, sample_teacher, sample_text, **options)
        return Running(arguments, tmp_path / "log" / f"{name} {rank.get('RANK')}", rank)

    one = start("one.zarr").wait()
    two = [running.wait() for running in [start("two.zarr", RANK=rank, WORLD_SIZE="2") for rank in "01"]]
    assert {ended.code for ended in (one, *two)} == {0}, (one, two)
    assert digests(tmp_path / "one.zarr") == digests(tmp_path / "two.zarr")
    for rank, ended in enumerate(two, 1):
        said = rf"worker {rank} of 2: [\d,]+ tokens in [\d.]+ s \([\d,]+ a second\), device idle \d"
        assert re.search(said, ended.stdout)


def test_idle_time_is_what_lies_between_batches() -> None:
    done = Throughput()
    assert done.idle == 0
    times = [(1.0, 2.0), (2.5, 4.0), (4.0, 5.0)]
    batch = HostBatch(*[torch.tensor([3, 4])] * 5, np.zeros(0), 1, query=torch.zeros(0), key_offset=torch.zeros(0))
    for start, end in times:
        began, finished = DeviceTimer(CPU), DeviceTimer(CPU)
        began.at, finished.at = start, end
        done.add(Launched(batch, torch.empty(0), {}, began, finished))
    assert (done.rows, done.tokens) == (6, 21)
    assert done.seconds == pytest.approx(4)
    assert done.idle == pytest.approx(0.5 / 4)
    assert str(done) == "21 tokens in 4.0 s (5 a second), device idle 12.5%"


def test_the_batch_is_as_large_as_memory_allows(sample_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = load_teacher(str(sample_teacher))

    def chosen(free: int, seq_len: int) -> int:
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free))
        return choose_batch_size(teacher, seq_len, CPU, torch.float32)

    assert chosen(2**40, 128) == chosen(2**30, 128) == 32
    assert 1 < chosen(530_000_000, 128) < 32
    assert chosen(0, 128) == 1
    assert chosen(2**40, 512) == 8
    assert chosen(2**40, 100) == 32, "a power of two"


def test_a_rank_takes_the_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [choose_device("auto", {"LOCAL_RANK": rank}).index for rank in ("0", "1", "2")] == [0, 1, 0]
    assert choose_device("auto", {}) == torch.device("cuda", 0)


@pytest.mark.parametrize("fault", ["missing", "dtype"])
def test_a_shard_takes_nothing_but_all_of_its_arrays(settings: BuildSettings, fault: str) -> None:
    cache = build_cache(settings)
    shard = ShardBuffer(cache, ShardKey("train", 0), 16, pinned=False)
    part = {name: array[:4].copy() for name, array in shard.arrays.items()}
    if fault == "missing":
        del part["tail_logmass"]
    else:
        part["topk_logprob"] = part["topk_logprob"].astype(np.float32)
    with pytest.raises(ValueError, match=r"shard train 0: expected arrays"):
        shard.put(part)
