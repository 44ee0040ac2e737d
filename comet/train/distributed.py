"""Several processes that train one student, started by torchrun. Alone, nothing is exchanged."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from cache_tools.errors import CometError

T = TypeVar("T")


class Processes:
    """What the processes tell each other on the CPU, beside the gradients: counts, decisions, and when one is done.

    Everything here is a meeting: all processes must come, in the same order. One that fails ends the others.
    """

    def __init__(self) -> None:
        """Alone, unless torch.distributed is initialized; then with all others."""
        self.count = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        # apart from NCCL, so that no exchange waits for a GPU
        self._group: Any = dist.new_group(backend="gloo") if self.count > 1 else None

    def share_of(self, batch_size: int) -> int:
        """The rows of a step that fall to each process. Raises CometError if they do not divide evenly."""
        if batch_size % self.count:
            raise CometError(
                f"--batch-size {batch_size}: not a multiple of {self.count} processes, which share it; choose one",
                exit_code=2,
            )
        return batch_size // self.count

    @property
    def first(self) -> bool:
        return self.rank == 0

    def total(self, *values: float) -> list[float]:
        """The sum of each value over all processes."""
        if self.count == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums, group=self._group)
        return sums.tolist()

    def any(self, *values: bool) -> list[bool]:
        """Whether any process says yes, to each."""
        return [total > 0 for total in self.total(*map(float, values))]

    def from_first(self, find: Callable[[], T]) -> T:
        """What the first process finds, in all of them. A CometError that it raises is raised in all of them."""
        if self.count == 1:
            return find()
        told: list[Any] = [None, None]
        if self.first:
            try:
                told[0] = find()
            except CometError as error:
                told[1] = error
        dist.broadcast_object_list(told, src=0, group=self._group)
        if told[1] is not None:
            raise told[1]
        found: T = told[0]
        return found

    def wait(self) -> None:
        """Until all have come here."""
        self.total()


def end_processes() -> bool:
    """Parts the processes, in the end. Whether this was the first."""
    if not dist.is_initialized():
        return True
    first = dist.get_rank() == 0
    dist.destroy_process_group()
    return first
