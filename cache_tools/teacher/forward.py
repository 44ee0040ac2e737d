"""One forward pass of the teacher over a batch, and what the cache keeps of it.

A batch goes through in three steps, so that a GPU never waits for the host: `host_batch` prepares it (in a thread
that reads ahead), `launch` only queues work, `collect` waits for the results. On a CPU `launch` computes.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools.attention import AttentionCapture, to_codes
from cache_tools.errors import CometError
from cache_tools.signals import UNUSED_ID, UNUSED_POSITION
from cache_tools.store.layout import NO_CODE
from cache_tools.store.recipe import Recipe
from cache_tools.teacher.head import BlockedHead
from cache_tools.teacher.model import Teacher
from cache_tools.teacher.threshold import keep_threshold_sample
from cache_tools.teacher.topk import keep_topk
from cache_tools.text.masking import threshold_offsets

NATS_STEPS = 1024


@dataclass(frozen=True)
class HostBatch:
    """Rows as the teacher reads them, L' the longest of them; in pinned memory when they go to a GPU.

    `input_ids` [B, L'] int64, `length` [B] int64; of the T targets `row`, `position` [T] int64 and `offset` [T]
    float64; `slot` [T] says where a target belongs in arrays [B, M], and `slots` is M; `map_row` [B'] int64 are the
    rows whose maps are kept.
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
    """Results that are on their way to the host, and when the device began and finished with them.

    `features` [T, H], on the device, are what the head's last layer gets of each target.
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
        """Returns when the device has reached it."""
        if self.event is not None:
            self.event.synchronize()

    def until(self, later: "DeviceTimer") -> float:
        """Seconds; both must have been reached."""
        if self.event is not None and later.event is not None:
            return self.event.elapsed_time(later.event) / 1000
        return later.at - self.at


def host_batch(
    recipe: Recipe, tokens: dict[str, NDArray], numbers: NDArray[np.int64] | None = None, pinned: bool = False
) -> HostBatch:
    """`tokens` are the token arrays of the batch's rows; `numbers` [B] say which rows of a shard they are, the first
    ones by default."""
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
    """A teacher on a device, ready to make the signals of a recipe.

    `teacher` is on the device, in the dtype it computes in; `seen` [V] bool says which ids occur in the corpus.
    """

    def __init__(self, teacher: Teacher, recipe: Recipe, seen: Tensor) -> None:
        self.teacher, self.recipe = teacher, recipe
        self.device = teacher.head.weight.device
        self.head = BlockedHead(teacher.head, seen.to(self.device))

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
        if recipe.keep == "threshold":
            sample = keep_threshold_sample(features, self.head, recipe.top_k, recipe.temperatures, offset)
            results = {
                "sample_id": sample.ids.int(),
                "sample_logweight": sample.logweight.half(),
                "entropy": rounded(sample.entropy),
                "entropy_seen": rounded(sample.entropy_seen),
            }
        else:
            kept = keep_topk(features, self.head, recipe.top_k, recipe.temperatures)
            results = {
                "topk_id": kept.ids.int(),
                "topk_logprob": kept.logprob.half(),
                "tail_logmass": rounded(kept.tail_logmass),
                "tail_logmass_seen": rounded(kept.tail_logmass_seen),
            }
        if recipe.attention_layers:
            results["attention"] = to_codes(capture.maps())
        return Launched(batch, features, {name: to_host(r) for name, r in results.items()}, began, DeviceTimer(device))


def rounded(nats: Tensor) -> Tensor:
    """To the nearest 1 / 1024, which halves the bytes and is finer than float16 log-probabilities are."""
    return (nats * NATS_STEPS).round() / NATS_STEPS


def to_host(result: Tensor) -> Tensor:
    """A copy in host memory; from a GPU it is under way when this returns."""
    if result.device.type == "cpu":
        return result
    host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
    return host.copy_(result, non_blocking=True)


def collect(launched: Launched) -> dict[str, NDArray]:
    """The teacher's arrays of a batch of rows, named, shaped and typed as in the cache.

    Raises CometError when a value is not finite, as fp16 may overflow.
    """
    launched.finished.wait()
    batch = launched.batch
    results = {name: result.numpy() for name, result in launched.results.items()}
    for name, values in results.items():
        if name == "attention":
            used = np.arange(values.shape[-1]) < batch.length[batch.map_row].numpy()[:, None]  # [B', m]
            if not (values.any(-1) | ~used[:, None]).all():
                raise CometError(overflow("attention is"))
        elif np.isnan(values).any() or (name == "topk_logprob" and np.isinf(values).any()):
            raise CometError(overflow("logits are"))
    arrays = {}
    for name, values in results.items():
        if name == "attention":
            arrays[name] = np.full((len(batch.length), *values.shape[1:]), NO_CODE, values.dtype)
            arrays[name][batch.map_row.numpy()] = values
        else:
            unused = UNUSED_ID if name.endswith("_id") else np.nan
            arrays[name] = np.full((len(batch.length), batch.slots, *values.shape[1:]), unused, values.dtype)
            arrays[name][batch.row.numpy(), batch.slot] = values
    return arrays


def seen_mask(ids: NDArray[np.int32], vocab_size: int) -> Tensor:
    """[V] bool: which ids occur in the corpus."""
    seen = torch.zeros(vocab_size, dtype=torch.bool)
    seen[torch.from_numpy(ids.astype(np.int64))] = True
    return seen


def overflow(what: str) -> str:
    return f"the teacher's {what} not finite; in float16 some models overflow: use --dtype float32"
