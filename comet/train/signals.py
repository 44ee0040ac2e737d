"""The student's side of every signal: the arrays to read, the distribution of the teacher in them, and the losses.

T targets, k kept tokens, n_T temperatures. Batches are those of `comet.train.dataset.collate`. A signal has one class
with the methods of `TopkTargets`; `kl_note`, how its KL is measured, for reports; and `losses`, its methods by the
names of the losses in an objective, `kl` among them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools.attention import decode_keys
from cache_tools.errors import CometError
from cache_tools.signals import ATTENTION, UNUSED_POSITION
from cache_tools.store.recipe import Recipe
from cache_tools.text.draws import attention_queries
from comet.train.losses import SampledRows, bucketed_kl, residual_kl, sampled_kl, teacher_log_normaliser

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class StudentLogits:
    """A student's logits at T targets: `kept` [T, k] of the tokens in the cache, −∞ in empty slots, `label` [T], and
    `rest` [T], log Σ exp(logit / temperature) over all other tokens, `rest_at_one` [T] at temperature 1."""

    kept: Tensor
    label: Tensor
    rest: Tensor
    rest_at_one: Tensor


ScoredIds = Callable[[Tensor], Tensor]
"""Returns the student's ids of the teacher's [T, …], −1 for tokens outside the corpus."""
LogitLoss = Callable[[Batch, StudentLogits, float], Tensor]
"""[T] distance to the teacher at a stored temperature."""


def in_student_ids(kept_id: Tensor, values: Tensor, scored: ScoredIds) -> tuple[Tensor, Tensor]:
    """Condition kept tokens and their log-probabilities or log weights, [T, …, k], on the tokens of the corpus.

    The slots of tokens outside it are left out: the id becomes −1, as in empty slots, and the value −∞. With the tail
    or entropy over the corpus this is exact.
    """
    kept_id = torch.where(kept_id < 0, -1, scored(kept_id.clamp(min=0)))
    return kept_id, values.masked_fill(kept_id < 0, -torch.inf)


def first_kept(kept_id: Tensor) -> Tensor:
    """Return the first slot [T, 1] of [T, k] with a token (not −1): that of the most probable token that is kept."""
    return (kept_id >= 0).byte().argmax(1, keepdim=True)


class TopkTargets:
    """The best k tokens and the mass of all others."""

    trimmed_note: ClassVar[str] = ""

    def __init__(self, recipe: Recipe) -> None:
        self.temperatures = recipe.temperatures
        self.kl_note = (
            f"bucketed: the top {recipe.top_k} tokens, and all others as one, which gives a lower bound of the full KL"
        )

    def arrays(self, trimmed: bool) -> tuple[str, ...]:
        """Name the arrays to train on, with the mass of all tokens or, `trimmed`, of those of the corpus."""
        return "topk_id", "topk_logprob", "tail_logmass_seen" if trimmed else "tail_logmass"

    def decode(self, batch: Batch) -> Batch:
        """Return the arrays that are not as they are stored: none."""
        return {}

    def kept_id(self, batch: Batch, temperature: float) -> Tensor:
        """Return the kept tokens [T, k], the most probable first, −1 in empty slots."""
        return batch["topk_id"]

    def condition(self, batch: Batch, scored: ScoredIds) -> Batch:
        """Return the arrays of the teacher conditioned on the tokens of the corpus, as `in_student_ids`."""
        kept_id, logprob = in_student_ids(batch["topk_id"], batch["topk_logprob"], scored)
        return {"topk_id": kept_id, "topk_logprob": logprob, "tail_logmass": batch["tail_logmass_seen"]}

    def kl(self, batch: Batch, student: StudentLogits, temperature: float) -> Tensor:
        """Return the bucketed KL [T]; NaN at a temperature that is not stored."""
        if temperature not in self.temperatures:
            return torch.full_like(student.rest, torch.nan)
        tail = self._tail(batch, temperature)
        return bucketed_kl(batch["topk_logprob"], tail, student.kept, student.rest, temperature)

    def residual(self, batch: Batch, student: StudentLogits, temperature: float) -> Tensor:
        is_label = batch["topk_id"] == batch["target_id"][:, None]
        tail, logprob = self._tail(batch, temperature), batch["topk_logprob"]
        return residual_kl(logprob, tail, is_label, student.kept, student.rest, student.label, temperature)

    def teacher_logprob(self, batch: Batch) -> Tensor:
        """Return log-probabilities [T, k] of the kept tokens at temperature 1, −∞ where unknown; those of a conditioned
        teacher sum to 1 with the tail."""
        logprob = batch["topk_logprob"]
        if 1.0 not in self.temperatures:
            return logprob
        return logprob - teacher_log_normaliser(logprob, self._tail(batch, 1.0), 1.0)[:, None]

    def mass_outside(self, batch: Batch, conditioned: Batch) -> Tensor:
        """Return the probability [T] at temperature 1 of all tokens outside the corpus, from a batch before and after
        `condition`."""
        tail = self._tail(conditioned, 1.0)
        return 1 - torch.logaddexp(conditioned["topk_logprob"].logsumexp(1), tail).exp()

    def _tail(self, batch: Batch, temperature: float) -> Tensor:
        return batch["tail_logmass"][:, self.temperatures.index(temperature)]

    losses: ClassVar[dict[str, Callable[..., Tensor]]] = {"kl": kl, "residual": residual}


class ThresholdTargets:
    """A threshold sample of the distribution at each temperature; temperature 1 is always stored."""

    trimmed_note: ClassVar[str] = ", weighted by the teacher's probability of these tokens,"

    def __init__(self, recipe: Recipe) -> None:
        self.temperatures, self.k = recipe.temperatures, recipe.top_k
        self.kl_note = f"estimated from up to {recipe.top_k} sampled tokens at each target"

    def arrays(self, trimmed: bool) -> tuple[str, ...]:
        return "sample_id", "sample_logweight", "entropy_seen" if trimmed else "entropy"

    def decode(self, batch: Batch) -> Batch:
        """Return the log weights with that of drawn tokens, τ = 1 / k, as it was: float16 rounds all of them to one
        side, and so would the KL be."""
        stored = batch["sample_logweight"]
        rounded = torch.tensor(-math.log(self.k)).half().float()
        return {"sample_logweight": stored.masked_fill(stored == rounded, -math.log(self.k))}

    def kept_id(self, batch: Batch, temperature: float) -> Tensor:
        """Return the sampled tokens [T, k]. Raises ValueError if `temperature` is not stored."""
        return batch["sample_id"][:, self.temperatures.index(temperature)]

    def condition(self, batch: Batch, scored: ScoredIds) -> Batch:
        kept_id, logweight = in_student_ids(batch["sample_id"], batch["sample_logweight"], scored)
        every, seen = (
            weights[:, self.temperatures.index(1.0)].logsumexp(1, keepdim=True)
            for weights in (batch["sample_logweight"], logweight)
        )
        seen_logmass = (seen - every).masked_fill(seen == -torch.inf, 0.0)  # [T, 1]; of none kept, nothing to divide
        return {
            "sample_id": kept_id, "sample_logweight": logweight, "entropy": batch["entropy_seen"],
            "seen_logmass": seen_logmass, "best_logweight": batch["sample_logweight"][..., :1],
        }  # fmt: skip

    def kl(self, batch: Batch, student: StudentLogits, temperature: float) -> Tensor:
        """Return the estimated KL [T]. Raises ValueError if `temperature` is not stored."""
        index = self.temperatures.index(temperature)
        logweight, entropy = batch["sample_logweight"][:, index], batch["entropy"][:, index]
        return sampled_kl(logweight, entropy, student.kept, student.rest, temperature)

    def teacher_logprob(self, batch: Batch) -> Tensor:
        """Return log-probabilities [T, k] of the certain tokens, those of a conditioned teacher among the tokens of the
        corpus; those of the drawn ones, which stand for others too, are −∞. The first that is kept counts as certain,
        also where a trimmed vocabulary lacks the best."""
        stored = logweight = batch["sample_logweight"][:, self.temperatures.index(1.0)]
        if "seen_logmass" in batch:
            logweight = (logweight - batch["seen_logmass"]).clamp(max=0.0)  # the mass is estimated
        first = first_kept(self.kept_id(batch, 1.0))
        best = batch.get("best_logweight", batch["sample_logweight"])[:, self.temperatures.index(1.0), :1]
        drawn = (best < -math.log(self.k)) | (stored == -math.log(self.k))  # all, if even the best is below 1 / k
        return logweight.masked_fill(drawn.scatter(1, first, False), -torch.inf)

    def mass_outside(self, batch: Batch, conditioned: Batch) -> Tensor:
        """Estimate the probability [T] at temperature 1 of all tokens outside the corpus."""
        at_one = self.temperatures.index(1.0)
        every, inside = (b["sample_logweight"][:, at_one].exp().sum(1) for b in (batch, conditioned))
        return every - inside

    losses: ClassVar[dict[str, Callable[..., Tensor]]] = {"kl": kl}


TeacherTargets = TopkTargets | ThresholdTargets
_CLASSES: dict[str, type[TeacherTargets]] = {"threshold": ThresholdTargets, "topk": TopkTargets}


def teacher_targets(recipe: Recipe) -> TeacherTargets:
    """Return the signal of logits in a cache."""
    return _CLASSES[recipe.keep](recipe)


def logit_loss(name: str, recipe: Recipe) -> LogitLoss:
    """Return the loss of this name. Raises CometError if it cannot be computed from the cache's signal."""
    targets = teacher_targets(recipe)
    if name not in targets.losses:
        able = [keep for keep, of in _CLASSES.items() if name in of.losses]
        raise CometError(
            f"logit_loss {name}: needs a cache built with --keep {' or '.join(able)}, this one was built with --keep "
            f"{recipe.keep}; use logit_loss {' or '.join(targets.losses)}",
            exit_code=2,
        )
    return partial(targets.losses[name], targets)


class AttentionTargets:
    """Attention of a few queries of every row, of each a sample of keys."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @property
    def arrays(self) -> tuple[str, ...]:
        """Name the arrays to train on: those of the signal, and the keys of rows, which decide the queries."""
        return (*ATTENTION.arrays, "row_key") if self.recipe.attention_layers else ()

    def decode(self, arrays: dict[str, NDArray]) -> Batch:
        """Return attention_query [B, layers, S], attention_key [B, layers, S, k] int64 and attention_weight
        [B, layers, S, k] float32, all 0 in unused slots; S as the longest row needs."""
        recipe, length = self.recipe, arrays["length"]
        every, layers = recipe.attention_queries, recipe.attention_layers
        slots = -(-int(length.max(initial=1)) // every)
        query = torch.from_numpy(
            attention_queries(arrays["row_key"], length, layers, every, slots).astype(np.int64)
        )  # [B, layers, S]
        gap = torch.from_numpy(arrays["attention_gap"][:, :, :slots].astype(np.int64))  # [B, layers, S, k]
        key, weight = decode_keys(gap, torch.from_numpy(arrays["attention_weight"][:, :, :slots]), recipe.seq_len)
        return {
            "attention_query": query.masked_fill(query == UNUSED_POSITION, 0),
            "attention_key": key,
            "attention_weight": weight,
        }

    def sampled(self, batch: Batch, layers: Tensor) -> SampledRows:
        """Return the teacher's rows in some of the cached layers, by index [layers] int64."""
        return SampledRows(batch["attention_key"][:, layers], batch["attention_weight"][:, layers], batch["length"])
