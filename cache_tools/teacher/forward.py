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
from cache_tools.text.masking import threshold_offsets


@dataclass(frozen=True)
class HostBatch:
    """Rows as the teacher reads them, L' the length of the longest; in pinned memory if they go to a GPU.

    `input_ids` [B, L'] int64, `length` [B] int64; of the T targets `row`, `position` [T] int64 and `offset` [T]
    float64; `slot` [T] is the column of a target in arrays [B, M], and `slots` is M; `map_row` [B'] int64 are the rows
    whose maps are kept.
    """

    input_ids: Tensor
    length: Tensor
    row: Tensor
    position: Tensor
    offset: Tensor
    slot: NDArray
    slots: int
    map_row: Tensor

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


def host_batch(
    recipe: Recipe, tokens: dict[str, NDArray], numbers: NDArray[np.int64] | None = None, pinned: bool = False
) -> HostBatch:
    """Return a batch of rows with these token arrays; `numbers` [B] are the rows' numbers in their shard, by default
    from 0."""
    position = tokens["target_position"]
    if numbers is None:
        numbers = np.arange(len(position))
    row, slot = np.nonzero(position != UNUSED_POSITION)
    longest = int(tokens["length"].max())

    def tensor(array: NDArray) -> Tensor:
        return torch.from_numpy(array).pin_memory() if pinned else torch.from_numpy(array)

    return HostBatch(
        input_ids=tensor(tokens["input_ids"][:, :longest].astype(np.int64)),
        length=tensor(tokens["length"].astype(np.int64)),
        row=tensor(row),
        position=tensor(position[row, slot].astype(np.int64)),
        offset=tensor(threshold_offsets(tokens["row_key"], position, recipe.seed)[row, slot]),
        slot=slot,
        slots=position.shape[1],
        map_row=tensor(np.flatnonzero(numbers % recipe.attention_every == 0)),
    )


class TeacherPass:
    """A teacher on a device, ready to compute the signals of a recipe.

    `teacher` is on the device, in its compute dtype; `seen` [V] bool marks the ids that occur in the corpus.
    """

    def __init__(self, teacher: Teacher, recipe: Recipe, seen: Tensor) -> None:
        self.teacher, self.recipe = teacher, recipe
        self.device = teacher.head.weight.device
        self.head = BlockedHead(teacher.head, seen.to(self.device))
        self.signals = teacher_signals(recipe)

    @torch.inference_mode()
    def launch(self, batch: HostBatch) -> Launched:
        recipe, device = self.recipe, self.device
        began = DeviceTimer(device)
        input_ids, length, row, position, offset, map_row = (
            t.to(device, non_blocking=True)
            for t in (batch.input_ids, batch.length, batch.row, batch.position, batch.offset, batch.map_row)
        )
        longest = input_ids.shape[1]
        mask = torch.arange(longest, device=device) < length[:, None]  # [B, L']
        capture = AttentionCapture(recipe.attention_layers, length, longest, recipe.attention_size, map_row)
        hidden = self.teacher.hidden_states(input_ids, mask, capture)  # [B, L', H]
        features = self.teacher.transform(hidden[row, position])  # [T, H]
        observed = Observation(features, offset, capture)
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
            subject, overflowed, axes = "attention is", _has_lost_map(values, batch), values.shape[1:]
            index: tuple[NDArray, ...] = (batch.map_row.numpy(),)
        else:
            subject, overflowed, axes = "logits are", _is_illegal(declared, values), (batch.slots, *values.shape[1:])
            index = (batch.row.numpy(), batch.slot)
        if overflowed:
            raise CometError(
                f"the teacher's {subject} not finite; in float16 some models overflow: use --dtype float32"
            )
        arrays[name] = np.full((len(batch.length), *axes), declared.fill, values.dtype)
        arrays[name][index] = values
    return arrays


def _has_lost_map(codes: NDArray, batch: HostBatch) -> bool:
    """Return whether a used row of codes [B', layers, m, m] is all zero, as codes of NaN are."""
    used = np.arange(codes.shape[-1]) < batch.length[batch.map_row].numpy()[:, None]  # [B', m]
    return not (codes.any(-1) | ~used[:, None]).all()


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
