"""The student's side of every signal: the arrays it reads, the teacher's distribution in them, and the losses it gives.

T targets, k kept tokens, n_T temperatures. Batches are those of `comet.train.dataset.collate`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from cache_tools.errors import CometError
from cache_tools.store.recipe import Recipe
from comet.train.losses import bucketed_kl, residual_kl, sampled_kl, teacher_log_normaliser

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class StudentLogits:
    """A student's logits at T targets: `kept` [T, k] of the tokens that the cache keeps, −∞ where a slot is empty,
    `label` [T], and `rest` [T], log Σ exp(logit / temperature) over all other tokens, `rest_at_one` [T] at 1."""

    kept: Tensor
    label: Tensor
    rest: Tensor
    rest_at_one: Tensor


LogitLoss = Callable[[Batch, StudentLogits, float], Tensor]
"""[T] distance to the teacher at a stored temperature."""


class TeacherTargets(Protocol):
    """What a signal of logits needs on the student's side."""

    kl_note: str
    """How the KL is measured, for a reader of a report."""

    losses: ClassVar[dict[str, Callable[..., Tensor]]]
    """Methods by the name of the loss in an objective."""

    def arrays(self, trimmed: bool) -> tuple[str, ...]:
        """The arrays that a training reads, with the mass of all tokens or of those of the corpus."""

    def kept_id(self, batch: Batch, temperature: float) -> Tensor:
        """[T, k] the tokens that the cache keeps, the most probable first, −1 in empty slots."""

    def condition(self, batch: Batch, scored_id: Tensor) -> Batch:
        """The arrays of the teacher conditioned on the tokens of the corpus, in the student's ids (`scored_id` [V])."""

    def teacher_logprob(self, batch: Batch) -> Tensor:
        """[T, k] log-probabilities of the kept tokens at temperature 1, −∞ where they are not known."""

    def mass_outside(self, batch: Batch, conditioned: Batch) -> Tensor:
        """[T] probability at temperature 1 of everything outside the corpus, given a batch before and after."""


def in_student_ids(kept_id: Tensor, values: Tensor, scored_id: Tensor) -> tuple[Tensor, Tensor]:
    """Kept tokens and their log-probabilities or log weights, […, k], of the teacher conditioned on the corpus's ids.

    `scored_id` [V] int64 maps the teacher's ids to the student's, −1 for those outside the corpus. Their slots are left
    out: the id becomes −1, as in empty slots, and the value −∞. With the tail or entropy over the corpus this is exact.
    """
    kept_id = torch.where(kept_id < 0, -1, scored_id[kept_id])
    return kept_id, values.masked_fill(kept_id < 0, -torch.inf)


def first_kept(kept_id: Tensor) -> Tensor:
    """[T, 1] the first slot of [T, k] that is not left out (−1): that of the most probable token that is kept."""
    return (kept_id >= 0).byte().argmax(1, keepdim=True)


class TopkTargets:
    """The best k tokens and the mass of all others."""

    def __init__(self, recipe: Recipe) -> None:
        self.temperatures = recipe.temperatures
        self.kl_note = (
            f"bucketed: the top {recipe.top_k} tokens, and all others as one, which gives a lower bound of the full KL"
        )

    def arrays(self, trimmed: bool) -> tuple[str, ...]:
        return "topk_id", "topk_logprob", "tail_logmass_seen" if trimmed else "tail_logmass"

    def kept_id(self, batch: Batch, temperature: float) -> Tensor:
        return batch["topk_id"]

    def condition(self, batch: Batch, scored_id: Tensor) -> Batch:
        kept_id, logprob = in_student_ids(batch["topk_id"], batch["topk_logprob"], scored_id)
        return {"topk_id": kept_id, "topk_logprob": logprob, "tail_logmass": batch["tail_logmass_seen"]}

    def kl(self, batch: Batch, student: StudentLogits, temperature: float) -> Tensor:
        """[T] bucketed KL; NaN at a temperature that is not stored."""
        if temperature not in self.temperatures:
            return torch.full_like(student.rest, torch.nan)
        tail = self._tail(batch, temperature)
        return bucketed_kl(batch["topk_logprob"], tail, student.kept, student.rest, temperature)

    def residual(self, batch: Batch, student: StudentLogits, temperature: float) -> Tensor:
        is_label = batch["topk_id"] == batch["target_id"][:, None]
        tail, logprob = self._tail(batch, temperature), batch["topk_logprob"]
        return residual_kl(logprob, tail, is_label, student.kept, student.rest, student.label, temperature)

    def teacher_logprob(self, batch: Batch) -> Tensor:
        """Of a conditioned teacher they make 1 with the tail."""
        logprob = batch["topk_logprob"]
        if 1.0 not in self.temperatures:
            return logprob
        return logprob - teacher_log_normaliser(logprob, self._tail(batch, 1.0), 1.0)[:, None]

    def mass_outside(self, batch: Batch, conditioned: Batch) -> Tensor:
        tail = self._tail(conditioned, 1.0)
        return 1 - torch.logaddexp(conditioned["topk_logprob"].logsumexp(1), tail).exp()

    def _tail(self, batch: Batch, temperature: float) -> Tensor:
        return batch["tail_logmass"][:, self.temperatures.index(temperature)]

    losses: ClassVar[dict[str, Callable[..., Tensor]]] = {"kl": kl, "residual": residual}


class ThresholdTargets:
    """A threshold sample of the distribution at each temperature."""

    def __init__(self, recipe: Recipe) -> None:
        self.temperatures = recipe.temperatures
        self.kl_note = f"estimated from up to {recipe.top_k} sampled tokens at each target"

    def arrays(self, trimmed: bool) -> tuple[str, ...]:
        return "sample_id", "sample_logweight", "entropy_seen" if trimmed else "entropy"

    def kept_id(self, batch: Batch, temperature: float) -> Tensor:
        """Raises ValueError for a temperature that no sample is stored for."""
        return batch["sample_id"][:, self.temperatures.index(temperature)]

    def condition(self, batch: Batch, scored_id: Tensor) -> Batch:
        kept_id, logweight = in_student_ids(batch["sample_id"], batch["sample_logweight"], scored_id)
        return {"sample_id": kept_id, "sample_logweight": logweight, "entropy": batch["entropy_seen"]}

    def kl(self, batch: Batch, student: StudentLogits, temperature: float) -> Tensor:
        """[T] estimated KL; NaN at a temperature that is not stored."""
        if temperature not in self.temperatures:
            return torch.full_like(student.rest, torch.nan)
        index = self.temperatures.index(temperature)
        logweight, entropy = batch["sample_logweight"][:, index], batch["entropy"][:, index]
        return sampled_kl(logweight, entropy, student.kept, student.rest, temperature)

    def teacher_logprob(self, batch: Batch) -> Tensor:
        """Those of the certain tokens; the drawn ones, which stand for others too, are −∞. The first that is kept
        counts as certain, also where a trimmed vocabulary lacks the best."""
        logweight = batch["sample_logweight"][:, self.temperatures.index(1.0)]
        first = first_kept(self.kept_id(batch, 1.0))
        others = logweight.scatter(1, first, -torch.inf)
        drawn = others.masked_fill(others == -torch.inf, torch.inf).amin(1, keepdim=True)  # all drawn weigh the same
        return logweight.masked_fill((others <= drawn).scatter(1, first, False), -torch.inf)

    def mass_outside(self, batch: Batch, conditioned: Batch) -> Tensor:
        """An estimate."""
        at_one = self.temperatures.index(1.0)
        every, inside = (b["sample_logweight"][:, at_one].exp().sum(1) for b in (batch, conditioned))
        return every - inside

    losses: ClassVar[dict[str, Callable[..., Tensor]]] = {"kl": kl}


_CLASSES: dict[str, type[TopkTargets] | type[ThresholdTargets]] = {"threshold": ThresholdTargets, "topk": TopkTargets}
LOGIT_LOSSES = tuple(dict.fromkeys(name for of in _CLASSES.values() for name in of.losses))


def teacher_targets(recipe: Recipe) -> TeacherTargets:
    """The signal of logits that a cache keeps."""
    return _CLASSES[recipe.keep](recipe)


def logit_loss(name: str, recipe: Recipe) -> LogitLoss:
    """The loss of this name. Raises CometError if the cache keeps a signal that cannot give it."""
    targets = teacher_targets(recipe)
    if name not in targets.losses:
        able = [keep for keep, of in _CLASSES.items() if name in of.losses]
        raise CometError(
            f"logit_loss {name}: needs a cache built with --keep {' or '.join(able)}, this one was built with --keep "
            f"{recipe.keep}; use logit_loss {' or '.join(targets.losses)}",
            exit_code=2,
        )
    return partial(targets.losses[name], targets)
