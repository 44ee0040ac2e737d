"""Rows come back exactly as stored, read ahead in bounded memory."""

import gc
import pickle
import shutil
import threading
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainingArguments

from cache_tools import Cache, open_cache
from cache_tools.errors import CometError
from cache_tools.store.layout import ArraySpec
from comet.train.dataset import Arrays, CacheRows, CacheShard, Reading, collate, require_compatible, shards_of
from comet.train.sampler import BUFFER_SHARDS

NAMES = (
    "input_ids", "length", "target_position", "target_id", "row_key", "topk_id", "topk_logprob", "tail_logmass",
    "attention_gap", "attention_weight",
)  # fmt: skip
COPIES = 4  # of a small cache, for a data set of many shards


@pytest.fixture
def rows(cache: Cache) -> CacheRows:
    rows = CacheRows(shards_of([cache] * COPIES, "train"), NAMES)
    assert len(rows.shards) > 4 * BUFFER_SHARDS, "the test needs several buffers"
    return rows


@pytest.fixture
def whole(cache: Cache) -> Arrays:
    """All rows of `rows`, one after the other."""
    shards = [cache.read_shard("train", shard, NAMES) for shard in cache.extent.indices("train")]
    return {name: np.concatenate([shard[name] for shard in shards] * COPIES) for name in NAMES}


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = threading.enumerate()
    yield
    assert not begun_since(before)


def begun_since(before: list[threading.Thread]) -> set[threading.Thread]:
    """The threads that live and did not then; one of another test may just be ending."""
    return set(threading.enumerate()) - set(before)


def loader_of(rows: CacheRows, sampler: Sampler[int], batch_size: int = 8) -> DataLoader:
    return DataLoader(rows, batch_size=batch_size, sampler=sampler, collate_fn=lambda arrays: arrays)


def watch_reads(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> list[tuple[int, str]]:
    """The shard and the thread of every read from now on, each of which takes so long at least."""
    read_shard, reads = Cache.read_shard, []

    def watched(cache: Cache, group: str, shard: int, names: Sequence[str], out: Arrays) -> Arrays:
        reads.append((shard, threading.current_thread().name))
        time.sleep(seconds)
        return read_shard(cache, group, shard, names, out)

    monkeypatch.setattr(Cache, "read_shard", watched)
    return reads


def test_rows_in_any_order_are_the_stored_rows(rows: CacheRows, whole: Arrays) -> None:
    order = np.random.default_rng(0).permutation(len(rows))[:25].tolist()
    batch = rows.__getitems__(order)
    for name in NAMES:
        np.testing.assert_array_equal(batch[name], whole[name][order])


@pytest.mark.parametrize("alpha", [1.0, 0.4])
@pytest.mark.parametrize("batch_size", [8, 50, 1000])
def test_epochs_are_the_stored_rows_in_the_sampler_s_order(
    cache: Cache, whole: Arrays, batch_size: int, alpha: float
) -> None:
    """For batches within a buffer, across two, and over many."""
    shards = shards_of([cache, cache], "train")
    rows = CacheRows(shards_of([cache], "train") * (COPIES - 1) + shards_of([open_cache(cache.root)], "train"), NAMES)
    assert len(rows.shards) == len(shards) * COPIES // 2
    sampler = rows.sampler(seed=3, alpha=alpha)
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        order, start = list(sampler), 0
        for batch in loader_of(rows, sampler, batch_size):
            chosen = order[start : start + batch_size]
            for name in NAMES:
                np.testing.assert_array_equal(batch[name], whole[name][chosen])
            start += len(chosen)
        assert start == len(rows)


def test_no_more_shards_are_held_than_allowed(cache: Cache) -> None:
    rows = CacheRows(shards_of([cache], "train"), NAMES, held=2)
    rows.__getitems__(list(range(len(rows))))
    assert len(rows._decoded) == 2


def test_a_row_that_does_not_exist_is_refused(rows: CacheRows) -> None:
    for row in (-1, len(rows)):
        with pytest.raises(IndexError, match=f"row {row}: expected 0 to {len(rows) - 1}"):
            rows[row]


def test_the_next_buffer_is_read_while_the_present_one_is_used(
    rows: CacheRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = watch_reads(monkeypatch)
    batches = iter(loader_of(rows, rows.sampler(seed=0)))
    next(batches)
    present, following = rows._upcoming
    ahead = [thread for thread in threading.enumerate() if thread.name == "comet-read-ahead"]
    for thread in ahead:
        thread.join(timeout=60)
    assert len(ahead) <= 1 and len(reads) == len(present) + len(following)
    assert {name for _, name in reads[len(present) :]} == {"comet-read-ahead"}
    for _ in range(sum(rows.shards[shard].rows for shard in present) // 8 - 1):
        next(batches)
    assert len(reads) == len(present) + len(following), "nothing is read of the buffer after the next"


def test_every_shard_is_read_once_in_an_epoch(rows: CacheRows, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = watch_reads(monkeypatch)
    for _ in loader_of(rows, rows.sampler(seed=0), batch_size=24):
        pass
    assert len(reads) == len(rows.shards)


class LargeShards:
    """A cache whose shards are of a mebibyte and made on the spot."""

    def __init__(self) -> None:
        spec = ArraySpec("train/length", (8, 2**17), (8, 2**17), np.dtype(np.uint8), 0, ())
        self.specs = {"train": {"length": spec}}

    def read_shard(self, group: str, shard: int, names: Sequence[str], out: Arrays) -> Arrays:
        out["length"][:] = np.full((8, 2**17), shard, np.uint8)
        return out


@pytest.mark.parametrize("shards", [20, 60])
def test_memory_is_that_of_two_buffers_for_any_size_of_cache(shards: int) -> None:
    cache: Any = LargeShards()
    rows = CacheRows([CacheShard(cache, "train", index, 8) for index in range(shards)], ["length"])
    tracemalloc.start()
    try:
        for _ in loader_of(rows, rows.sampler(seed=1), batch_size=1):
            assert sum(map(len, rows._decoded)) <= BUFFER_SHARDS
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    in_hands = 2  # one shard in those of each thread
    assert 2 * BUFFER_SHARDS < peak / 2**20 < 2 * BUFFER_SHARDS + in_hands + 0.5


def test_an_abandoned_iterator_leaves_no_thread(rows: CacheRows, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = watch_reads(monkeypatch, seconds=0.05)
    before = threading.enumerate()
    batches = iter(loader_of(rows, rows.sampler(seed=0)))
    next(batches)
    assert len(begun_since(before)) == 1
    del batches
    assert not begun_since(before)
    assert len(reads) < 2 * BUFFER_SHARDS, "it begins no further shard"


def test_an_exception_in_the_consumer_leaves_no_thread(rows: CacheRows, monkeypatch: pytest.MonkeyPatch) -> None:
    watch_reads(monkeypatch, seconds=0.05)
    before = threading.enumerate()
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        for _ in loader_of(rows, rows.sampler(seed=0)):
            raise ZeroDivisionError
    assert not begun_since(before)


def test_an_iterator_may_be_dropped_by_the_reading_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a garbage collection happens to run there."""
    cache: Any = LargeShards()
    rows = CacheRows([CacheShard(cache, "train", index, 8) for index in range(12)], ["length"])

    def read_shard(group: str, shard: int, names: Sequence[str], out: Arrays) -> Arrays:
        if rows._ahead and threading.current_thread() is rows._ahead[1]._thread:
            rows.expect([])
        return LargeShards.read_shard(cache, group, shard, names, out)

    monkeypatch.setattr(cache, "read_shard", read_shard)
    sampler = rows.sampler(seed=0)
    order = list(sampler)
    for number, batch in enumerate(loader_of(rows, sampler)):
        assert batch["length"][:, 0].tolist() == [row // 8 for row in order[8 * number : 8 * number + 8]]


@pytest.fixture
def damaged(cache: Cache, tmp_path: Path) -> tuple[CacheRows, int, Path]:
    """A data set with a damaged shard, its number, and the damaged file."""
    root = shutil.copytree(cache.root, tmp_path / "damaged.zarr")
    shards = shards_of([open_cache(root)], "train")
    rows = CacheRows(shards, NAMES)
    last = max(row // 16 for row in list(rows.sampler(seed=0))[-4:])
    path = root / cache.specs["train"]["topk_id"].chunk_path(shards[last].index)
    path.write_bytes(path.read_bytes()[:-9])
    return rows, last, path


def test_a_damaged_shard_is_reported_where_its_rows_are_due(damaged: tuple[CacheRows, int, Path]) -> None:
    rows, shard, path = damaged
    before, due = threading.enumerate(), []
    order = rows.sampler(seed=0)
    order.expect = lambda upcoming: due.extend(upcoming[:1])
    list(order)
    good = sum(rows.shards[s].rows for buffer in due[: [shard in b for b in due].index(True)] for s in buffer)
    seen = 0
    with pytest.raises(CometError, match=f"{path}: .* do not match the ledger"):  # noqa: PT012
        for batch in loader_of(rows, rows.sampler(seed=0), batch_size=4):
            seen += len(batch["length"])
    assert seen == good // 4 * 4 > 0
    assert not begun_since(before)


def test_a_dropped_iterator_forgets_the_damage_ahead(damaged: tuple[CacheRows, int, Path]) -> None:
    rows, _, _ = damaged
    batches = iter(loader_of(rows, rows.sampler(seed=0), batch_size=4))
    next(batches)
    del batches
    assert rows._ahead is None and list(rows._upcoming) == []


def test_a_reader_goes_to_other_processes(rows: CacheRows, whole: Arrays) -> None:
    """To a spawned one by pickle; and a forked one, which is left without the thread, reads on by itself."""
    copy = pickle.loads(pickle.dumps(rows))
    np.testing.assert_array_equal(copy.__getitems__([5, 99, 7])["topk_id"], whole["topk_id"][[5, 99, 7]])
    reading = Reading(rows.shards[:3], NAMES)
    reading.result()["topk_id"][20:] = -7
    reading._done = [0]
    np.testing.assert_array_equal(reading.result()["topk_id"], whole["topk_id"][: 3 * 16])


class Recorder(nn.Module):
    """A model that only remembers the batches it is given, and fails at one of them."""

    def __init__(self, fail_at: int = -1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.fail_at = fail_at
        self.batches: list[NDArray] = []

    def forward(self, input_ids: Tensor, length: Tensor, **rest: Tensor) -> dict[str, Tensor]:
        if len(self.batches) == self.fail_at:
            raise ZeroDivisionError
        self.batches.append(input_ids.numpy())
        return {"loss": self.weight.sum() * length.float().mean()}


class RowsTrainer(Trainer):
    """transformers' Trainer, its rows in the order of DistillationTrainer."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        rows: Any = train_dataset or self.train_dataset
        return rows.sampler(self.args.seed, 0.5)


def train(model: Recorder, cache: Cache, folder: Path, resume: Path | None = None) -> None:
    """An epoch and a half, with a checkpoint in the first and one in the second; 2 × 4 rows a step."""
    rows = CacheRows(shards_of([cache, cache, open_cache(cache.root)], "train"), NAMES)
    steps = len(rows) // 8
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps * 3 // 2, save_steps=steps // 3, per_device_train_batch_size=4,
        gradient_accumulation_steps=2, report_to="none", disable_tqdm=True, remove_unused_columns=False, seed=4,
        dataloader_pin_memory=False, save_strategy="steps", logging_strategy="no",
    )  # fmt: skip
    collator = partial(collate, recipe=cache.recipe)
    trainer = RowsTrainer(model=model, args=arguments, train_dataset=rows, data_collator=collator)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))


@pytest.mark.slow
def test_a_resumed_training_sees_the_batches_that_were_left(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = Recorder()
    train(straight, cache, tmp_path)
    checkpoints = sorted(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*"))
    for step in (checkpoints[0], checkpoints[-2]):
        resumed = Recorder()
        reads = watch_reads(monkeypatch)
        train(resumed, cache, tmp_path, tmp_path / f"checkpoint-{step}")
        left = straight.batches[-len(resumed.batches) :]
        assert 0 <= 2 * (checkpoints[-1] - step) - len(left) <= 1, "the last step of an epoch may have one batch only"
        for one, other in zip(resumed.batches, left, strict=True):
            np.testing.assert_array_equal(one, other)
        monkeypatch.undo()
        assert len(reads) < len(left) * 4 / 16 + 4 * BUFFER_SHARDS, "reading began where it had ended"


@pytest.mark.slow
def test_a_training_that_ends_or_fails_leaves_no_thread(cache: Cache, tmp_path: Path) -> None:
    before = threading.enumerate()
    train(Recorder(), cache, tmp_path / "whole")
    assert not begun_since(before)
    with pytest.raises(ZeroDivisionError) as caught:
        train(Recorder(fail_at=3), cache, tmp_path / "failed")
    for thread in set(threading.enumerate()) - set(before):  # while the traceback holds the iterator, it ends itself
        thread.join(timeout=60)
        assert not thread.is_alive()
    del caught
    gc.collect()


@pytest.mark.parametrize("group", ["train", "validation"])
def test_two_caches_make_one_data_set(cache: Cache, group: str) -> None:
    once, twice = CacheRows(shards_of([cache], group), NAMES), CacheRows(shards_of([cache, cache], group), NAMES)
    assert len(twice) == 2 * len(once)
    np.testing.assert_array_equal(twice[len(once)]["input_ids"], once[0]["input_ids"])


def test_caches_of_other_signals_are_refused_by_all_that_differs(cache: Cache, reopened: Cache) -> None:
    reopened.recipe = replace(reopened.recipe, top_k=3, seq_len=32)
    words = rf"^--cache {reopened.root}: its top k is 3, but 16; its seq len is 32, but 64 in {cache.root}; caches that"
    with pytest.raises(CometError, match=words):
        require_compatible([cache, reopened])


def test_caches_of_other_teachers_are_refused_by_their_names(cache: Cache, reopened: Cache) -> None:
    reopened.recipe = replace(reopened.recipe, teacher_sha256="0" * 64, top_k=3)
    reopened.provenance = cache.provenance | {"teacher": "lab/other"}
    teacher = cache.provenance["teacher"]
    words = rf"^--cache {reopened.root}: is of another teacher, lab/other, than {cache.root}, {teacher};"
    with pytest.raises(CometError, match=words):
        require_compatible([cache, reopened])
