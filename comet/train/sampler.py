"""The order of an epoch's rows: shuffled within buffers of a few whole shards, a pure function of (seed, epoch)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from cache_tools.errors import CometError, noop

BUFFER_SHARDS = 4
CYCLE = 2**63 - 1  # instead of an epoch: the key of an order that all epochs share

Buffer = tuple[int, ...]
"""The shards whose rows are shuffled together, ascending."""


@dataclass(frozen=True)
class Piece:
    """Rows of one shard that an epoch takes together, as ranges of row numbers: all rows of the shard or a part."""

    shard: int
    rows: tuple[range, ...]


class ShardShuffleSampler(Sampler[int]):
    """Yield row numbers in an order that is a pure function of (seed, epoch), shuffled within buffers of a few shards.

    `sizes` are the rows of each shard, `caches` the number of the cache of each (one cache if None). An epoch has as
    many rows as all caches together, Σ n, and takes of a cache with n rows a share in proportion to n ** alpha: every
    row as often as the share allows, then a window of its shards that begins where the window of the epoch before
    ended. With alpha = 1 that is every row once. Every buffer holds each cache's due share, ± one shard, and no shard
    twice unless it is taken more often than there are buffers.

    While rows are drawn, `expect` is called with the buffer in use and the next one; at the end, or when the iterator
    is dropped, with none. Raises CometError if alpha is outside (0, 1].
    """

    def __init__(
        self,
        sizes: Sequence[int],
        seed: int,
        buffer_shards: int = BUFFER_SHARDS,
        *,
        caches: Sequence[int] | None = None,
        alpha: float = 1.0,
        expect: Callable[[Sequence[Buffer]], None] = noop,
    ) -> None:
        if not 0 < alpha <= 1:
            raise CometError(
                f"language sampling exponent {alpha}: expected a number above 0, and at most 1 (1: every row once)",
                exit_code=2,
            )
        self.starts = np.cumsum([0, *sizes])
        self.caches = np.asarray([0] * len(sizes) if caches is None else caches, dtype=np.int64)
        self.seed = seed
        self.buffer_shards = buffer_shards
        self.alpha = alpha
        self.expect = expect
        self.epoch = 0

    def __len__(self) -> int:
        return int(self.starts[-1])

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = self._generator(self.epoch)
        buffers = self._buffers(self.epoch, generator)
        shards = [tuple(sorted({piece.shard for piece in buffer})) for buffer in buffers]
        try:
            for index, buffer in enumerate(buffers):
                self.expect(shards[index : index + 2])
                rows = np.concatenate([np.arange(r.start, r.stop) for piece in buffer for r in piece.rows])
                yield from generator.permutation(rows).tolist()
        finally:
            self.expect([])

    def _generator(self, epoch: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self.seed, epoch]))

    def _buffers(self, epoch: int, generator: np.random.Generator) -> list[list[Piece]]:
        """Deal all pieces out like cards, so that neighbours, of one shard or one cache, go to different buffers."""
        caches = [np.flatnonzero(self.caches == cache) for cache in np.unique(self.caches)]
        targets = language_rows([int(np.diff(self.starts)[shards].sum()) for shards in caches], self.alpha)
        cycles = self._generator(CYCLE)
        pieces: list[list[Piece]] = []
        for shards, target in zip(caches, targets, strict=True):
            takes = self._takes(cycles.permutation(shards), target, epoch)
            pieces.append([piece for shard in generator.permutation(len(takes)) for piece in takes[shard]])
        deck = [piece for cache in generator.permutation(len(pieces)) for piece in pieces[cache]]
        hands = -(-len(deck) // self.buffer_shards)
        return [deck[first::hands] for first in generator.permutation(hands)]

    def _takes(self, cycle: NDArray[np.int64], target: int, epoch: int) -> list[list[Piece]]:
        """Return the pieces that make `target` rows of one cache, for each shard of its cycle: a whole one for each
        pass, then the part in the window. Windows follow each other in a cycle, so that no row is in a window twice
        and all get their turn."""
        total = int(np.diff(self.starts)[cycle].sum())
        passes, window = divmod(target, total)
        begin = epoch * window % total
        takes, offset = [], 0
        for shard in cycle.tolist():
            rows = range(self.starts[shard], self.starts[shard + 1])
            turns = (begin - total - offset, begin - offset)
            part = tuple(filter(len, [rows[max(0, turn) : max(0, turn + window)] for turn in turns]))
            takes.append([Piece(shard, (rows,))] * passes + ([Piece(shard, part)] if part else []))
            offset += len(rows)
        return takes


class SharedBatches(Sampler[list[int]]):
    """Yield the rows of a sampler in batches: of each batch, the part of one of several processes.

    All processes together have the batches that one alone has, in the same order. In the last batch of an epoch, which
    may be smaller, the part of a process may be empty, so that all take the same number of steps.
    """

    def __init__(self, sampler: ShardShuffleSampler, batch_size: int, rank: int = 0, processes: int = 1) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.rank = rank
        self.processes = processes

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        rows = iter(self.sampler)
        while batch := list(islice(rows, self.batch_size)):
            begin, end = (len(batch) * rank // self.processes for rank in (self.rank, self.rank + 1))
            yield batch[begin:end]


def language_rows(rows: Sequence[int], alpha: float) -> list[int]:
    """Return how many rows an epoch takes of each cache of n rows: in proportion to n ** alpha, together Σ n.

    The exponent of XLM-R (Conneau et al. 2020, https://arxiv.org/abs/1911.02116). The rows left over after rounding
    down go to the largest remainders.
    """
    weights = np.asarray(rows, dtype=np.float64) ** alpha
    exact = weights / weights.sum() * sum(rows)
    whole = np.floor(exact).astype(np.int64)
    whole[np.argsort(whole - exact, kind="stable")[: sum(rows) - whole.sum()]] += 1
    return whole.tolist()
