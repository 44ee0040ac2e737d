"""One forward pass of the teacher over a batch, and the arrays that the cache keeps of it.

A batch goes through three steps, so that a GPU never waits for the host: `host_batch` prepares it (in a thread that
reads ahead), `launch` only queues work, `collect` waits for the results. On a CPU `launch` computes.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools.attention import AttentionCapture
from cache_tools.errors import CometError
from cache_tools.signals import ARRAYS, UNUSED_POSITION, DeclaredArray, family_of
from cache_tools.store.bounds import illegal_values
from cache_tools.store.recipe import Recipe
from cache_tools.teacher.head import BlockedHead
from cache_tools.teacher.model import Observation, Teacher
from cache_tools.teacher.signals import teacher_signals
from cache_tools.text.draws import attention_queries, key_offsets, threshold_offsets


@dataclass(frozen=True)
class HostBatch:
    """Rows as the teacher reads them, L' the length of the longest; in pinned memory if they go to a GPU.

    `input_ids` [B, L'] int64, `length` [B] int64; of the T targets `row`, `position` [T] int64 and `offset` [T]
    float64; `slot` [T] is the column of a target in arrays [B, M], and `slots` is M; `query` [B, layers, S] int64, the
    queries whose attention is kept, and `key_offset` [B, layers, S] float64.
    """

    input_ids: Tensor
    length: Tensor
    row: Tensor
    position: Tensor
    offset: Tensor
    slot: NDArray
    slots: int
    query: Tensor
    key_offset: Tensor

    @property
    def tokens(self) -> int:
        return int(self.length.sum())


@dataclass(frozen=True)
class Launched:
    """Results on their way to the host, and when the device began and finished them.

    `features` [T, H], on the device, are the inputs of the head's last layer at each target.
    """

    batch: HostBatch
    features: Tensor
    results: dict[str, Tensor]
    began: "DeviceTimer"
    finished: "DeviceTimer"


class DeviceTimer:
    """An instant on a device's own clock: for a GPU when its queue reaches this point."""

    def __init__(self, device: torch.device) -> None:
        self.event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self.event is not None:
            self.event.record(torch.cuda.current_stream(device))
        self.at = time.perf_counter()

    def wait(self) -> None:
        """Wait until the device has reached this instant."""
        if self.event is not None:
            self.event.synchronize()

    def until(self, later: "DeviceTimer") -> float:
        """Return the seconds until `later`; the device must have reached both."""
        if self.event is not None and later.event is not None:
            return self.event.elapsed_time(later.event) / 1000
        return later.at - self.at


def host_batch(recipe: Recipe, tokens: dict[str, NDArray], pinned: bool = False) -> HostBatch:
    """Return a batch of rows with these token arrays."""
    position, row_key, layers = tokens["target_position"], tokens["row_key"], recipe.attention_layers
    query = attention_queries(row_key, tokens["length"], layers, recipe.attention_queries, recipe.attention_slots)
    row, slot = np.nonzero(position != UNUSED_POSITION)
    longest = int(tokens["length"].max())

    def tensor(array: NDArray) -> Tensor:
        return torch.from_numpy(array).pin_memory() if pinned else torch.from_numpy(array)

    return HostBatch(
        input_ids=tensor(tokens["input_ids"][:, :longest].astype(np.int64)),
        length=tensor(tokens["length"].astype(np.int64)),
        row=tensor(row),
        position=tensor(position[row, slot].astype(np.int64)),
        offset=tensor(threshold_offsets(row_key, position, recipe.seed)[row, slot]),
        slot=slot,
        slots=position.shape[1],
        query=tensor(query.astype(np.int64)),
        key_offset=tensor(key_offsets(row_key, layers, recipe.attention_slots)),
    )


class TeacherPass:
    """A teacher on a device, ready to compute the signals of a recipe.

    `teacher` is on the device, in its compute dtype; `seen` [V] bool, on the CPU, marks the ids in the corpus.
    """

    def __init__(self, teacher: Teacher, recipe: Recipe, seen: Tensor) -> None:
        self.teacher, self.recipe = teacher, recipe
        self.device = teacher.head.weight.device
        self.head = BlockedHead(teacher.head, seen)
        self.signals = teacher_signals(recipe)

    @torch.inference_mode()
    def launch(self, batch: HostBatch) -> Launched:
        recipe, device = self.recipe, self.device
        began = DeviceTimer(device)
        input_ids, length, row, position, offset, query, key_offset = (
            t.to(device, non_blocking=True)
            for t in (
                batch.input_ids, batch.length, batch.row, batch.position, batch.offset, batch.query, batch.key_offset
            )
        )  # fmt: skip
        longest = input_ids.shape[1]
        # without padding there is none to mask, and attention has faster kernels
        is_full = bool((batch.length == longest).all())
        mask = None if is_full else torch.arange(longest, device=device) < length[:, None]  # [B, L']
        is_query = query != UNUSED_POSITION
        capture = AttentionCapture(recipe.attention_layers, query.masked_fill(~is_query, 0))
        hidden = self.teacher.hidden_states(input_ids, mask, capture)  # [B, L', H]
        features = self.teacher.transform(hidden[row, position])  # [T, H]
        observed = Observation(features, offset, length, capture, is_query, key_offset)
        results = {
            name: _to_host(array)
            for signal in self.signals.values()
            for name, array in signal.compute(observed, self.head).items()
        }
        return Launched(batch, features, results, began, DeviceTimer(device))


def _to_host(result: Tensor) -> Tensor:
    """Return a copy in host memory; from a GPU the copy is still under way."""
    if result.device.type == "cpu":
        return result
    host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
    return host.copy_(result, non_blocking=True)


def collect(launched: Launched) -> dict[str, NDArray]:
    """Return the teacher's arrays of a batch of rows, named, shaped and typed as in the cache.

    Raises CometError if a value is not finite, as fp16 may overflow.
    """
    launched.finished.wait()
    batch, arrays = launched.batch, {}
    for name, result in launched.results.items():
        values, declared = result.numpy(), ARRAYS[name]
        if family_of(name) == "attention":
            subject, overflowed = "attention is", name == "attention_gap" and _lacks_a_query(values, batch)
        else:
            subject, overflowed = "logits are", _is_illegal(declared, values)
        if overflowed:
            raise CometError(
                f"the teacher's {subject} not finite; in float16 some models overflow: use --dtype float32"
            )
        if "target" in declared.axes:
            arrays[name] = np.full((len(batch.length), batch.slots, *values.shape[1:]), declared.fill, values.dtype)
            arrays[name][batch.row.numpy(), batch.slot] = values
        else:
            arrays[name] = values
    return arrays


def _lacks_a_query(gap: NDArray, batch: HostBatch) -> bool:
    """Return whether a query has no key in `gap` [B, layers, S, k], which happens if its attention is not finite."""
    is_query = batch.query.numpy() != UNUSED_POSITION  # [B, layers, S]
    return bool((is_query & (gap[..., 0] >= batch.length.numpy()[:, None, None])).any())


def _is_illegal(declared: DeclaredArray, values: NDArray) -> bool:
    """Return whether one of these numbers at targets [T, …] may not be stored."""
    if declared.legal is None or values.dtype.kind != "f":
        return False
    return any(illegal.any() for illegal in illegal_values(declared.legal, values, {}))


def seen_mask(ids: NDArray[np.int32], vocab_size: int) -> Tensor:
    """Return [V] bool: which ids occur in the corpus."""
    seen = torch.zeros(vocab_size, dtype=torch.bool)
    seen[torch.from_numpy(ids.astype(np.int64))] = True
    return seen
