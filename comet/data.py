"""Cache → batches: a data set of rows, a sampler that can be repeated exactly, and the collator."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from cache_tools.errors import CometError
from cache_tools.store.reader import Cache

UNUSED_POSITION = 65535
BUFFER_SHARDS = 4

Arrays = dict[str, NDArray]


@dataclass(frozen=True)
class Shard:
    """Where one shard lies and how many rows it has."""

    cache: Cache
    group: str
    index: int
    rows: int


def shards_of(caches: Sequence[Cache], group: str) -> list[Shard]:
    """The shards of a group in the extents of all caches, in order."""
    return [
        Shard(cache, group, index, cache.recipe.shard_rows(group, index))
        for cache in caches
        for index in cache.extent.indices(group)
    ]


class CacheRows(Dataset[Arrays]):
    """The rows of some shards under one running index; the last few shards touched are held decoded."""

    def __init__(self, shards: list[Shard], names: Sequence[str], held: int = BUFFER_SHARDS + 1) -> None:
        self.shards = shards
        self.names = tuple(names)
        self.held = held
        self.starts = np.cumsum([0] + [shard.rows for shard in shards])
        self._decoded: OrderedDict[int, Arrays] = OrderedDict()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, row: int) -> Arrays:
        return self.__getitems__([row])

    def __getitems__(self, rows: Sequence[int]) -> Arrays:
        """The arrays of these rows, in this order, axis 0 the rows."""
        index = np.asarray(rows)
        place = np.searchsorted(self.starts, index, side="right") - 1
        parts, order = [], []
        for shard in np.unique(place):
            chosen = np.flatnonzero(place == shard)
            arrays = self._shard(int(shard))
            parts.append({name: array[index[chosen] - self.starts[shard]] for name, array in arrays.items()})
            order.append(chosen)
        back = np.argsort(np.concatenate(order), kind="stable")
        return {name: np.concatenate([part[name] for part in parts])[back] for name in self.names}

    def _shard(self, number: int) -> Arrays:
        if number not in self._decoded:
            shard = self.shards[number]
            self._decoded[number] = shard.cache.read_shard(shard.group, shard.index, self.names)
            while len(self._decoded) > self.held:
                self._decoded.popitem(last=False)
        self._decoded.move_to_end(number)
        return self._decoded[number]


class ShardShuffleSampler(Sampler[int]):
    """Row numbers in an order that is a pure function of (seed, epoch).

    Shards are permuted, then rows are shuffled within buffers of a few shards, so reading stays sequential per
    shard and memory bounded.
    """

    def __init__(self, sizes: Sequence[int], seed: int, buffer_shards: int = BUFFER_SHARDS) -> None:
        self.sizes = list(sizes)
        self.seed = seed
        self.buffer_shards = buffer_shards
        self.epoch = 0

    def __len__(self) -> int:
        return sum(self.sizes)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = np.random.Generator(np.random.Philox(key=[self.seed, self.epoch]))
        starts = np.cumsum([0, *self.sizes])
        order = generator.permutation(len(self.sizes))
        for first in range(0, len(order), self.buffer_shards):
            buffer = order[first : first + self.buffer_shards]
            rows = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in buffer])
            yield from generator.permutation(rows).tolist()


def collate(arrays: Arrays) -> dict[str, Tensor]:
    """Rows [B, …] as a batch of tensors, its T used target slots side by side.

    input_ids [B, L'] int64 (L' the longest row), length [B] int64, target_row, target_position, target_id [T] int64,
    topk_id [T, k] int64, topk_logprob [T, k] float32, tail_logmass and tail_logmass_seen [T, n_T] float32,
    threshold [T] float32 if stored, attention [B, layers, m, m] float32 if asked for.
    """
    longest = int(arrays["length"].max())
    row, slot = np.nonzero(arrays["target_position"] != UNUSED_POSITION)
    batch = {
        "input_ids": torch.from_numpy(arrays["input_ids"][:, :longest].astype(np.int64)),
        "length": torch.from_numpy(arrays["length"].astype(np.int64)),
        "target_row": torch.from_numpy(row),
    }
    for name in ("target_position", "target_id", "topk_id"):
        batch[name] = torch.from_numpy(arrays[name][row, slot].astype(np.int64))
    for name in ("topk_logprob", "tail_logmass", "tail_logmass_seen", "threshold"):
        if name in arrays:
            batch[name] = torch.from_numpy(arrays[name][row, slot].astype(np.float32))
    if "attention" in arrays:
        batch["attention"] = torch.from_numpy(arrays["attention"].astype(np.float32))
    return batch


def require_compatible(caches: Sequence[Cache]) -> None:
    """Raises CometError unless the caches come from one teacher and keep the same signals, naming what differs."""
    first = caches[0]
    teacher = ("teacher_sha256", "tokenizer_sha256", "vocab_size")
    signals = ("keep", "top_k", "temperatures", "attention_layers", "attention_size")
    for other in caches[1:]:
        for name in teacher + signals:
            mine, theirs = getattr(first.recipe, name), getattr(other.recipe, name)
            if mine != theirs:
                raise CometError(
                    f"--cache {other.root}: its {name.replace('_', ' ')} is {theirs}, but {mine} in {first.root}; "
                    "caches that are trained on together must come from one teacher and keep the same signals",
                    exit_code=2,
                )
