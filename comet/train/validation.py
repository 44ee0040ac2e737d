"""Measure a student against the teacher's cached outputs, on rows that it never trains on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from cache_tools.progress import show_progress
from comet.train.dataset import CacheRows, CacheShard, Collator, arrays_to_read, collate
from comet.train.distiller import Distiller
from comet.train.distributed import Processes


@dataclass(frozen=True)
class Validation:
    """Means over the validation targets, at temperature 1. Accuracies are those of the most probable token."""

    targets: int
    kl: float  # nats; bucketed, or estimated from a threshold sample
    cross_entropy: float  # nats, to the label
    accuracy: float
    teacher_accuracy: float
    agreement: float  # how often the student's most probable token is the teacher's

    @property
    def distance(self) -> float:
        """The measure of the best checkpoint, lower is better: the KL, or the cross-entropy if the cache holds no tail
        at temperature 1."""
        return self.cross_entropy if math.isnan(self.kl) else self.kl

    def __str__(self) -> str:
        return f"KL {self.kl:.3f}, masked-token loss {self.cross_entropy:.3f}, accuracy {self.accuracy:.1%}"


def validation_rows(shards: Sequence[CacheShard]) -> CacheRows:
    """Return the rows of these shards, with the arrays for a validation."""
    names = arrays_to_read(shards[0].cache.recipe, attention=False)
    return CacheRows(list(shards), names, held=1)


def validate(
    distiller: Distiller,
    rows: CacheRows,
    batch_size: int,
    device: torch.device,
    collator: Collator | None = None,
    processes: Processes | None = None,
) -> Validation:
    """Measure the student on all rows. Processes share the batches.

    `collator` makes batches in the student's ids; None leaves the ids as in the cache.
    """
    processes, collator = processes or Processes(), collator or partial(collate, recipe=distiller.cache)
    batches = [range(len(rows))[begin : begin + batch_size] for begin in range(0, len(rows), batch_size)]
    mine = batches[processes.rank :: processes.count]
    totals = torch.zeros(6, dtype=torch.float64)
    for index in show_progress(mine, "validate", "batch", leave=False, disable=not processes.first):
        batch = {name: tensor.to(device) for name, tensor in collator(rows.__getitems__(index)).items()}
        found, label = distiller.evaluate(batch), batch["target_id"]
        sums = (
            torch.tensor(len(label)),
            found.kl.sum(),
            found.cross_entropy.sum(),
            (found.best == label).sum(),
            (found.teacher_best == label).sum(),
            (found.best == found.teacher_best).sum(),
        )
        totals += torch.stack([s.double().cpu() for s in sums])
    targets, *others = processes.total(*totals.tolist())
    return Validation(int(targets), *(total / targets for total in others))
