"""Several processes that train one student, started by torchrun; a process alone exchanges nothing."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from cache_tools.errors import CometError

T = TypeVar("T")


class Processes:
    """All processes of torch.distributed, or this one alone: what they exchange on the CPU beside the gradients.

    Every method but `share_of` is collective: all processes must call it, in the same order. One that fails ends the
    others.
    """

    def __init__(self) -> None:
        self.count = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        # not NCCL, so that no exchange waits for a GPU
        self._group: Any = dist.new_group(backend="gloo") if self.count > 1 else None

    def share_of(self, batch_size: int) -> int:
        """Return each process's rows of a step. Raises CometError if they do not divide evenly."""
        if batch_size % self.count:
            raise CometError(
                f"--batch-size {batch_size}: expected a multiple of {self.count}, the number of processes",
                exit_code=2,
            )
        return batch_size // self.count

    @property
    def first(self) -> bool:
        return self.rank == 0

    def total(self, *values: float) -> list[float]:
        """Return the sum of each value over all processes."""
        if self.count == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums, group=self._group)
        return sums.tolist()

    def any(self, *values: bool) -> list[bool]:
        """Return for each value whether it is True in any process."""
        return [total > 0 for total in self.total(*map(float, values))]

    def from_first(self, find: Callable[[], T]) -> T:
        """Return in all processes the result of `find` in the first one. A CometError there is raised in all."""
        if self.count == 1:
            return find()
        outcome: list[Any] = [None, None]  # result, error
        if self.first:
            try:
                outcome[0] = find()
            except CometError as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0, group=self._group)
        found, failure = outcome
        if failure is not None:
            raise failure
        return found

    def wait(self) -> None:
        """Wait until all processes have called this."""
        self.total()


def end_processes() -> bool:
    """Leave the process group at the end. Returns whether this was the first process."""
    if not dist.is_initialized():
        return True
    first = dist.get_rank() == 0
    dist.destroy_process_group()
    return first
