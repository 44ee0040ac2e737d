"""From a cache to batches: a dataset of rows that reads whole shards ahead, and the collator."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import combinations
from threading import Thread, current_thread

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from cache_tools.errors import CometError, printable
from cache_tools.signals import ARRAYS, LOGITS, UNUSED_POSITION, family_of, kept_signals
from cache_tools.store.reader import Cache
from cache_tools.store.recipe import Recipe
from comet.student.vocabulary import StudentVocabulary
from comet.train.sampler import BUFFER_SHARDS, Buffer, ShardShuffleSampler
from comet.train.signals import AttentionTargets, Batch, teacher_targets

Arrays = dict[str, NDArray]
Collator = Callable[[Arrays], Batch]


@dataclass(frozen=True)
class CacheShard:
    """One shard of a group in a cache, its number of rows, and the number of its cache among those of a training."""

    cache: Cache
    group: str
    index: int
    rows: int
    corpus: int = 0


def shards_of(caches: Sequence[Cache], group: str) -> list[CacheShard]:
    """Return the shards of a group in the extents of all caches, in order."""
    return [
        CacheShard(cache, group, index, cache.recipe.shard_rows(group, index), corpus)
        for corpus, cache in enumerate(caches)
        for index in cache.extent.indices(group)
    ]


class Reading:
    """Shards that a thread of its own reads and decodes into one buffer.

    The thread never waits, and ends with the last shard. `result` reads along in the calling thread until all are done.
    """

    def __init__(self, shards: Sequence[CacheShard], names: Sequence[str]) -> None:
        self._shards = shards
        self._ends = np.cumsum([shard.rows for shard in shards])
        specs = shards[0].cache.specs[shards[0].group]
        self._arrays = {name: np.empty((self._ends[-1], *specs[name].chunk[1:]), specs[name].dtype) for name in names}
        self._todo: Iterator[int] = iter(range(len(shards)))  # both threads step it: a step is atomic
        self._done: list[int] = []
        self._errors: list[BaseException] = []
        self._thread = Thread(target=self._read_along, name="comet-read-ahead")
        self._thread.start()

    def result(self) -> Arrays:
        """Return the arrays, shard after shard. Raises any error of reading, in either thread."""
        try:
            self._read()
        finally:
            self.cancel()
        if self._errors:
            raise self._errors.pop()
        if unread := set(range(len(self._shards))) - set(self._done):  # a forked process does not have the thread
            self._todo = iter(unread)
            return self.result()
        return self._arrays

    def cancel(self) -> None:
        """Begin no further shard, and wait for the one being read."""
        for _ in self._todo:
            pass
        if self._thread is not current_thread():  # garbage collection in it may drop an iterator
            self._thread.join()

    def _read_along(self) -> None:
        try:
            self._read()
        except BaseException as error:  # `result` raises it
            self._errors.append(error)

    def _read(self) -> None:
        try:
            for number in self._todo:
                shard, end = self._shards[number], self._ends[number]
                part = {name: array[end - shard.rows : end] for name, array in self._arrays.items()}
                shard.cache.read_shard(shard.group, shard.index, part, out=part)
                self._done.append(number)
        finally:  # after an error the other thread begins no further shard
            for _ in self._todo:
                pass


class CacheRows(Dataset[Arrays]):
    """The rows of some shards under one running index; reads whole shards, and ahead while its sampler is iterated.

    Keeps at most `held` decoded shards, or the one buffer in use if it is larger, and at most one buffer read ahead:
    2 × BUFFER_SHARDS in training. Each of two threads may hold one more shard while decoding it.
    """

    def __init__(self, shards: list[CacheShard], names: Sequence[str], held: int = BUFFER_SHARDS) -> None:
        self.shards = shards
        self.names = tuple(names)
        self.held = held
        self.starts = np.cumsum([0] + [shard.rows for shard in shards])
        self._decoded: OrderedDict[Buffer, Arrays] = OrderedDict()
        self._upcoming: Sequence[Buffer] = ()
        self._ahead: tuple[Buffer, Reading] | None = None

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, row: int) -> Arrays:
        return self.__getitems__([row])

    def __getitems__(self, rows: Sequence[int]) -> Arrays:
        """Return the arrays of these rows, in this order, axis 0 the rows, and the `corpus` [B] int64 of each.

        Cuts from one buffer at a time, so rows should come buffer by buffer. Raises CometError for a damaged shard and
        IndexError for a row that does not exist.
        """
        index = np.asarray(rows, dtype=np.int64)
        shard = np.searchsorted(self.starts, index, side="right") - 1
        parts = []
        while len(index):
            buffer, arrays = self._buffer(int(index[0]))
            offsets = self._offsets(buffer, index)
            run = len(offsets) if offsets.min() >= 0 else int(np.argmax(offsets < 0))
            parts.append({name: array.take(offsets[:run], axis=0) for name, array in arrays.items()})
            index = index[run:]
        following = next((buffer for buffer in self._upcoming if buffer not in self._decoded), None)
        if following and not self._ahead:
            self._ahead = following, self._reading(following)
        if not parts:
            specs = self.shards[0].cache.specs[self.shards[0].group]
            parts = [{name: np.empty((0, *specs[name].chunk[1:]), specs[name].dtype) for name in self.names}]
        corpus = np.array([shard.corpus for shard in self.shards], dtype=np.int64)[shard]
        arrays = parts[0] if len(parts) == 1 else {n: np.concatenate([p[n] for p in parts]) for n in self.names}
        return arrays | {"corpus": corpus}

    def sampler(self, seed: int, alpha: float = 1.0) -> ShardShuffleSampler:
        """Return the order of an epoch's rows; shards are read ahead while it is iterated."""
        number = {cache: i for i, cache in enumerate(dict.fromkeys(shard.cache for shard in self.shards))}
        caches = [number[shard.cache] for shard in self.shards]
        return ShardShuffleSampler(
            [shard.rows for shard in self.shards], seed, caches=caches, alpha=alpha, expect=self.expect
        )

    def expect(self, upcoming: Sequence[Buffer]) -> None:
        """Set the buffers of the next rows, the present one first. Drops what was read ahead of any other buffer; with
        none, no thread is left afterwards."""
        self._upcoming = upcoming
        if self._ahead and self._ahead[0] not in upcoming:
            self._ahead[1].cancel()
            self._ahead = None

    def _reading(self, buffer: Buffer) -> Reading:
        return Reading([self.shards[shard] for shard in buffer], self.names)

    def _buffer(self, row: int) -> tuple[Buffer, Arrays]:
        """Return a decoded buffer with this row: one that is held, or an upcoming one, or the row's shard alone."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row}: expected 0 to {len(self) - 1}")
        shard = int(np.searchsorted(self.starts, row, side="right")) - 1
        for buffer in self._decoded:
            if shard in buffer:
                self._decoded.move_to_end(buffer)
                return buffer, self._decoded[buffer]
        buffer = next((buffer for buffer in self._upcoming if shard in buffer), (shard,))
        while self._decoded and sum(map(len, self._decoded)) + len(buffer) > self.held:
            self._decoded.popitem(last=False)
        if self._ahead and self._ahead[0] == buffer:
            (_, reading), self._ahead = self._ahead, None
        else:
            reading = self._reading(buffer)
        self._decoded[buffer] = reading.result()
        return buffer, self._decoded[buffer]

    def _offsets(self, buffer: Buffer, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the index of each of these rows in the arrays of a buffer, -1 for rows of other shards."""
        shards = np.asarray(buffer)
        sizes = self.starts[shards + 1] - self.starts[shards]
        which = np.searchsorted(self.starts[shards], index, side="right") - 1
        within = index - self.starts[shards[which]]
        inside = (which >= 0) & (within < sizes[which])
        return np.where(inside, np.cumsum(sizes)[which] - sizes[which] + within, -1)


def collate(arrays: Arrays, recipe: Recipe) -> Batch:
    """Make a batch of tensors from rows [B, …] of a cache, their T used target slots side by side.

    input_ids [B, L'] int64 (L' the longest row), length [B] int64, target_row [T] int64, target_corpus [T] int64 if the
    rows have a `corpus`, and from the other arrays in `arrays`: at targets [T, …] int64 or float32; attention as
    `AttentionTargets.decode` gives it. row_key is left out: no loss reads it. Raises CometError for an array that the
    table of signals does not declare.
    """
    slots = arrays["target_position"].shape[1]
    used = np.flatnonzero(arrays["target_position"] != UNUSED_POSITION)
    batch = {
        "input_ids": torch.from_numpy(arrays["input_ids"][:, : int(arrays["length"].max(initial=1))].astype(np.int64)),
        "length": torch.from_numpy(arrays["length"].astype(np.int64)),
        "target_row": torch.from_numpy(used // slots),
    }
    if (corpus := arrays.get("corpus")) is not None:
        batch["target_corpus"] = torch.from_numpy(corpus[used // slots])
    stored = {name: array for name, array in arrays.items() if name != "corpus"}
    for name, array in stored.items():
        if family_of(name) != "attention" and "target" in ARRAYS[name].axes:
            values = torch.from_numpy(array.reshape(-1, *array.shape[2:]).take(used, axis=0))
            batch[name] = values.float() if values.is_floating_point() else values.long()  # faster than by numpy
    if any(family_of(name) == "logits" for name in stored):
        batch |= teacher_targets(recipe).decode(batch)
    has_attention = any(family_of(name) == "attention" for name in stored)
    return batch | (AttentionTargets(recipe).decode(stored) if has_attention else {})


def held_recipe(caches: Sequence[Cache]) -> Recipe:
    """Return the recipe of the caches, without attention if a copy does not hold it.

    Raises CometError if a copy holds no logits.
    """
    recipe = caches[0].recipe
    for cache in caches:
        held = set(cache.extent.arrays)
        for signal in kept_signals(recipe):
            if held >= signal.arrays.keys():
                continue
            if signal.family == "logits":
                raise CometError(
                    f"{cache.name}: this copy holds no logits to learn from (it lacks "
                    f"{', '.join(sorted(signal.arrays.keys() - held))}); pull or merge a copy that has them",
                    exit_code=2,
                )
            recipe = replace(recipe, attention_layers=())
    return recipe


def arrays_to_read(recipe: Recipe, attention: bool, trimmed: bool | None = None) -> tuple[str, ...]:
    """Name the arrays to read from a cache, with or without attention; for a trimmed vocabulary or a full one, by
    default for both."""
    tokens = ("input_ids", "length", "target_position", "target_id")
    logits = tuple(LOGITS[recipe.keep].arrays) if trimmed is None else teacher_targets(recipe).arrays(trimmed)
    return (*tokens, *logits, *(AttentionTargets(recipe).arrays if attention else ()))


def require_compatible(caches: Sequence[Cache]) -> None:
    """Raise CometError, naming each difference, unless the caches have one teacher, the same signals and row length;
    and if two of them hold the same rows, as copies, parts and other builds of one cache do."""
    teacher = ("teacher_sha256", "tokenizer_sha256", "vocab_size")
    signals = ("keep", "top_k", "temperatures", "attention_layers", "attention_queries", "attention_keys")
    first = asdict(caches[0].recipe)
    for other in caches[1:]:
        found = asdict(other.recipe)
        if found["teacher_sha256"] != first["teacher_sha256"]:
            theirs, ours = (printable(cache.provenance.get("teacher")) for cache in (other, caches[0]))
            raise CometError(
                f"--cache {other.name}: is of another teacher, {theirs}, than {caches[0].name}, {ours}; caches that "
                "are trained on together need one teacher",
                exit_code=2,
            )
        names = [name for name in (*teacher, *signals, "seq_len", "max_targets") if found[name] != first[name]]
        if names:
            unlike = "; ".join(f"its {name.replace('_', ' ')} is {found[name]}, but {first[name]}" for name in names)
            raise CometError(
                f"--cache {other.name}: {unlike} in {caches[0].name}; "
                "caches that are trained on together need one teacher, the same signals and rows of one length",
                exit_code=2,
            )
    for one, other in combinations(caches, 2):
        if one.recipe.recipe_id == other.recipe.recipe_id and set(one.extent.keys()) & set(other.extent.keys()):
            raise CometError(
                f"--cache {other.name}: the same cache as {one.name}, or another part or build of it, so that rows "
                "would count twice; omit one, or join parts with comet-cache merge",
                exit_code=2,
            )


def in_vocabulary(batch: Batch, vocabulary: StudentVocabulary, recipe: Recipe) -> Batch:
    """Return a batch of `collate` in the student's ids; for a trimmed vocabulary, with the teacher conditioned on the
    tokens of each target's corpus.

    Kept tokens outside it get id −1 and log-probability −∞, and the tail or entropy becomes that of the corpus.
    """
    if vocabulary.scored is None:
        return batch
    scored = partial(vocabulary.scored_ids, corpus=batch.get("target_corpus"))
    ids = {"input_ids": vocabulary.student_id[batch["input_ids"]], "target_id": scored(batch["target_id"])}
    return batch | ids | teacher_targets(recipe).condition(batch, scored)


def student_collator(recipe: Recipe, vocabulary: StudentVocabulary) -> Collator:
    """Return the collator of a training: `collate`, then `in_vocabulary`."""
    return lambda arrays: in_vocabulary(collate(arrays, recipe), vocabulary, recipe)


def teacher_mass_outside(shards: Sequence[CacheShard], vocabulary: StudentVocabulary) -> float | None:
    """Return the teacher's mean probability at T = 1 of tokens outside the corpus, over the targets of these shards;
    an estimate if the cache holds a threshold sample, None if it holds no tail at 1."""
    recipe = shards[0].cache.recipe
    if 1.0 not in recipe.temperatures:
        return None
    targets, names = teacher_targets(recipe), arrays_to_read(recipe, attention=False)
    outside: list[Tensor] = []
    for shard in shards:
        batch = collate(CacheRows([shard], names).__getitems__(range(shard.rows)), recipe)
        outside.append(targets.mass_outside(batch, in_vocabulary(batch, vocabulary, recipe)))
    return torch.cat(outside).mean().item()
