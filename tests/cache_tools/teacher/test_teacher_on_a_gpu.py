"""The teacher on a real GPU: what is asynchronous, what is rounded, what fits in its memory."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.settings import build_settings

from cache_tools import Cache, build_cache
from cache_tools.build.pipeline import ShardBuffer
from cache_tools.models import choose_device
from cache_tools.settings import BuildSettings, RerunSettings
from cache_tools.store.ledger import ShardKey
from cache_tools.teacher.device import TOKENS_AT_ONCE, choose_batch_size
from cache_tools.teacher.forward import TeacherPass, collect, seen_mask
from cache_tools.teacher.head import product
from cache_tools.teacher.model import load_teacher
from cache_tools.verify.verify import verify

pytestmark = pytest.mark.gpu
HALVES = [torch.float16, torch.bfloat16]
GPU = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def settings(sample_teacher: Path, sample_text: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildSettings:
    out = tmp_path_factory.mktemp("gpu") / "cpu.zarr"
    return build_settings(out, sample_teacher, sample_text, max_tokens=None, seq_len=64, views=4, rows_per_shard=128)


@pytest.fixture(scope="module")
def built(settings: BuildSettings) -> Cache:
    """On the CPU in float32."""
    return build_cache(settings)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_launch_makes_the_host_wait_for_nothing(built: Cache, sample_teacher: Path, dtype: torch.dtype) -> None:
    """CUDA itself says where it would; padded rows are in the last batch of a group."""
    teacher_pass = TeacherPass(
        load_teacher(str(sample_teacher)).to(GPU, dtype), built.recipe, seen_mask(built.vocabulary.id, 8000)
    )
    batches = ShardBuffer(built, ShardKey("validation", 0), 4, pinned=True).batches
    assert batches[0].input_ids.is_pinned()
    first = [collect(teacher_pass.launch(batch)) for batch in batches]
    torch.cuda.set_sync_debug_mode("error")
    try:
        launched = [teacher_pass.launch(batch) for batch in batches]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for before, one in zip(first, launched, strict=True):
        assert all(result.is_pinned() for result in one.results.values())
        for name, array in collect(one).items():
            np.testing.assert_array_equal(array, before[name], err_msg=name)
        assert 0 < one.began.until(one.finished) < 60, "seconds, between two events"


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_products_are_not_rounded(dtype: torch.dtype) -> None:
    generator = torch.Generator(GPU).manual_seed(0)
    weight = (torch.randn(4096, 1024, generator=generator, device=GPU) * 30).to(dtype)
    features = (torch.randn(1024, 48, generator=generator, device=GPU) * 30).to(dtype)
    found = torch.empty(4096, 48, device=GPU)
    product(weight, features, out=found)
    exact = weight.double() @ features.double()
    assert exact.abs().max() > torch.finfo(torch.float16).max, "else nothing could overflow"
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("keep", ["threshold", "topk"])
def test_values_are_those_of_the_cpu_within_the_tolerance(settings: BuildSettings, keep: str, dtype: str) -> None:
    """Of every row, in the measures and tolerances of `comet-cache verify --teacher`."""
    out = settings.out.with_name(f"{keep}-{dtype}.zarr")
    cache = build_cache(replace(settings, out=out, keep=keep, device="cuda", dtype=dtype))
    record = cache.record("train", 0)
    assert record is not None
    assert (record.numerics["device"], record.numerics["dtype"]) == (torch.cuda.get_device_name(GPU), dtype)
    again = RerunSettings(settings.teacher, rows=10_000, device="cpu", dtype="float32")
    assert verify(out, deep=True, again=again).damage == []


def test_the_batch_follows_the_free_memory(sample_teacher: Path) -> None:
    teacher, seq_len = load_teacher(str(sample_teacher)), 128
    torch.cuda.empty_cache()
    most = choose_batch_size(teacher, seq_len, GPU, torch.bfloat16)
    assert most == TOKENS_AT_ONCE["cuda"] // seq_len, "on a card that is otherwise free"
    taken = torch.empty(torch.cuda.mem_get_info(GPU)[0] - 3 * 2**30, dtype=torch.uint8, device=GPU)
    assert choose_batch_size(teacher, seq_len, GPU, torch.bfloat16) == 1, "the logits alone may take more"
    del taken
    torch.cuda.empty_cache()


def test_out_of_memory_goes_on_in_half_batches(
    settings: BuildSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real memory, of which the process may use no more than lies between what two sizes of batches need."""

    def build(name: str, batch_size: int) -> tuple[Cache, int]:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        made = build_cache(
            replace(settings, out=tmp_path / name, device="cuda", dtype="float16", batch_size=batch_size)
        )
        return made, torch.cuda.max_memory_reserved()

    small, needed = build("small.zarr", 16)
    _, too_much = build("large.zarr", 128)
    assert too_much > needed + 2**25, "else the limit would be no limit"
    torch.cuda.set_per_process_memory_fraction(
        (needed + too_much) / 2 / torch.cuda.get_device_properties(0).total_memory
    )
    try:
        limited, _ = build("limited.zarr", 128)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory: continuing with batches of" in capsys.readouterr().err
    record = limited.record("train", limited.recipe.shards("train") - 1)
    assert record is not None
    assert 16 <= int(record.numerics["batch_size"]) < 128
    assert limited.recipe.recipe_id == small.recipe.recipe_id
    assert verify(limited.root, deep=True, again=RerunSettings(settings.teacher, device="cuda")).damage == []


def test_ranks_share_the_cards_there_are() -> None:
    cards = torch.cuda.device_count()
    chosen = [choose_device("auto", {"LOCAL_RANK": str(rank)}) for rank in range(2 * cards)]
    assert [device.index for device in chosen] == [*range(cards)] * 2
    assert torch.ones(1, device=chosen[-1]).item() == 1
