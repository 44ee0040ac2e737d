"""What is kept of the teacher's distribution at a target: the best or a sample of its tokens, and the tail.

Logits are formed in float32 a slice at a time; what is not kept joins the tail directly, since total − kept would
cancel where the tail is small.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

VOCABULARY_SLICE = 16384
TARGET_SLICE = 64
ROUNDING = 1e-9


@dataclass(frozen=True)
class Head:
    """The last linear layer of a masked-LM head: weight [V, H], bias [V], on the device of the features."""

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor, ids: Tensor | slice) -> Tensor:
        """[T, ids] float32 logits of features [T, H], never rounded to the compute dtype."""
        return torch.addmm(self.bias[ids].float(), features.float(), self.weight[ids].float().T)


@dataclass(frozen=True)
class KeptLogits:
    """What a cache stores of T targets. Shapes: ids, logprob [T, k]; tails [T, n_T]; threshold [T] or None."""

    ids: Tensor
    logprob: Tensor
    tail_logmass: Tensor
    tail_logmass_seen: Tensor
    threshold: Tensor | None


def keep_topk(features: Tensor, head: Head, k: int, temperatures: tuple[float, ...], seen: Tensor) -> KeptLogits:
    """The k most probable tokens of each target, best first, ties to the lower id, and the tails.

    `features` [T, H]; `seen` [V] bool, the ids that occur in the corpus. One pass over slices of the vocabulary,
    each of seen or of unseen ids only; never more than [T, slice] logits at a time.
    """
    targets, device = len(features), features.device
    best = torch.full((targets, 0), -torch.inf, device=device)
    best_id = torch.zeros((targets, 0), dtype=torch.int64, device=device)
    tail_seen, tail_unseen = (RunningTail(targets, temperatures, device) for _ in range(2))
    for tail, kind in ((tail_seen, seen), (tail_unseen, ~seen)):
        for ids in kind.nonzero()[:, 0].split(VOCABULARY_SLICE):
            logits = head.logits(features, ids)  # [T, C]
            top = top_positions(logits, min(k, len(ids)))  # [T, ≤ k]
            merged = torch.cat([best, logits.gather(1, top)], dim=1)  # [T, ≤ 2k]
            merged_id = torch.cat([best_id, ids[top]], dim=1)
            order = by_falling_value(merged, merged_id)
            merged, merged_id = merged.gather(1, order), merged_id.gather(1, order)
            best, dropped = merged[:, :k], merged[:, k:]
            best_id, dropped_is_seen = merged_id[:, :k], seen[merged_id[:, k:]]
            tail.add(logits.scatter_(1, top, -torch.inf))
            tail_seen.add(dropped.masked_fill(~dropped_is_seen, -torch.inf))
            tail_unseen.add(dropped.masked_fill(dropped_is_seen, -torch.inf))
    log_total = torch.stack([best.logsumexp(1), tail_seen.at_one(), tail_unseen.at_one()]).logsumexp(0)  # [T]
    logmass_seen = tail_seen.logmass(log_total)
    logmass = torch.logaddexp(logmass_seen, tail_unseen.logmass(log_total))
    return KeptLogits(best_id, best - log_total[:, None], logmass, logmass_seen, threshold=None)


def top_positions(values: Tensor, k: int) -> Tensor:
    """[T, k] positions of the k largest values of each row of [T, C] in no order, ties to the lower position."""
    if k == values.shape[1]:
        return torch.arange(k, device=values.device).expand(len(values), -1)
    largest, position = values.topk(k + 1, dim=1)
    chosen = position[:, :k]
    tied = (largest[:, k - 1] == largest[:, k]).nonzero()[:, 0]  # topk breaks a tie at its edge as it likes
    if len(tied):
        edge = largest[tied, k - 1, None]
        above, equal = values[tied] > edge, values[tied] == edge
        room = k - above.sum(1, keepdim=True)
        chosen[tied] = (above | (equal & (equal.cumsum(1) <= room))).nonzero()[:, 1].view(-1, k)
    return chosen


def by_falling_value(values: Tensor, ids: Tensor) -> Tensor:
    """[T, n] positions that sort each row by falling value, equal values by rising id."""
    by_id = ids.argsort(dim=1)
    return by_id.gather(1, values.gather(1, by_id).argsort(dim=1, descending=True, stable=True))


class RunningTail:
    """Sums of exp(logit / T) for each temperature, relative to the largest logit so far.

    So a tail of 1e-30 of the mass is as exact as one of a half. Temperature 1 is always summed, for the normaliser.
    """

    def __init__(self, targets: int, temperatures: tuple[float, ...], device: torch.device) -> None:
        self.temperatures = temperatures
        self.summed = tuple(dict.fromkeys((1.0, *temperatures)))
        self.largest = torch.full((targets, 1), torch.finfo(torch.float32).min, device=device)
        self.sums = torch.zeros((targets, len(self.summed)), device=device)

    def add(self, logits: Tensor) -> None:
        """`logits` [T, C], −inf where a token is not of this tail."""
        if not logits.shape[1]:
            return
        largest = torch.maximum(self.largest, logits.amax(1, keepdim=True))  # [T, 1]
        temperature = torch.tensor(self.summed, device=logits.device)
        self.sums *= ((self.largest - largest) / temperature).exp()
        below = logits - largest
        for index, t in enumerate(self.summed):
            self.sums[:, index] += (below / t).exp_().sum(1)
        self.largest = largest

    def at_one(self) -> Tensor:
        """[T] log of the summed exp(logit); −inf where the tail is empty."""
        return self.sums[:, 0].log() + self.largest[:, 0]

    def logmass(self, log_total: Tensor) -> Tensor:
        """[T, n_T] log Σ exp(logprob / T), given log Σ exp(logit) over the whole vocabulary [T]."""
        temperature = torch.tensor(self.summed, device=log_total.device)
        logmass = self.sums.log() + (self.largest - log_total[:, None]) / temperature
        return logmass[:, [self.summed.index(t) for t in self.temperatures]]


def keep_threshold_sample(
    features: Tensor, head: Head, k: int, temperatures: tuple[float, ...], seen: Tensor, offset: Tensor
) -> KeptLogits:
    """Exactly k tokens of each target, an unbiased sample of its distribution, by falling probability.

    Priority sampling with a threshold (Duffield, Lund, Thorup 2007, https://doi.org/10.1145/1314690.1314696), the
    light tokens drawn systematically: τ solves Σ min(1, p / τ) = k; every p ≥ τ is kept; the others are taken where
    the running sum of p / τ, started at `offset` ([T] float64 in [0, 1)), passes a whole number. A kept token
    stands for max(p, τ), and these weights sum to 1. `features` [T, H]; `seen` [V] bool; `offset` in multiples of
    2⁻³², so that adding it to a whole number is exact.
    """
    vocab_size = len(head.weight)
    if k >= vocab_size:
        raise ValueError(f"a threshold sample of {k} from {vocab_size} tokens is not a sample")
    parts = []
    for rows in torch.arange(len(features), device=features.device).split(TARGET_SLICE):
        logprob = head.logits(features[rows], slice(0, vocab_size)).double().log_softmax(1)  # [t, V]
        ids, threshold = threshold_sample(logprob.exp(), k, offset[rows])
        kept = logprob.gather(1, ids)
        order = kept.argsort(dim=1, descending=True, stable=True)
        ids, kept = ids.gather(1, order), kept.gather(1, order)
        rest = logprob.scatter(1, ids, -torch.inf)
        rest_seen = rest.masked_fill(~seen, -torch.inf)
        tails = [torch.stack([(r / t).logsumexp(1) for t in temperatures], 1) for r in (rest, rest_seen)]
        parts.append((ids, kept.float(), tails[0].float(), tails[1].float(), threshold.float()))
    return KeptLogits(*(torch.cat(column) for column in zip(*parts, strict=True)))


def threshold_sample(probability: Tensor, k: int, offset: Tensor) -> tuple[Tensor, Tensor]:
    """([T, k] ids ascending, [T] τ) of probabilities [T, V] float64 that sum to 1 and offsets [T] in [0, 1)."""
    largest, largest_id = probability.topk(k, dim=1)  # [T, k]
    rest = probability.scatter(1, largest_id, 0.0).sum(1, keepdim=True)  # [T, 1] mass outside the k largest
    light = rest + largest.flip(1).cumsum(1).flip(1)  # [T, k] mass from the j-th on, summed: 1 − the others cancels
    share = light / (k - torch.arange(k, device=probability.device))  # τ if exactly the j largest are certain
    reaches = largest >= share * (1 - ROUNDING)
    certain = reaches.cumprod(1).sum(1).clamp(max=k - 1)  # [T] how many are kept for certain
    threshold = share.gather(1, certain[:, None])  # [T, 1]
    is_certain = torch.zeros_like(probability, dtype=torch.bool)
    is_certain.scatter_(1, largest_id, torch.arange(k, device=probability.device) < certain[:, None])

    draws = (k - certain)[:, None].double()  # [T, 1] how many of the light tokens are taken
    running = probability.masked_fill(is_certain, 0.0).cumsum(1)  # [T, V]
    steps = running / running[:, -1:] * draws + offset[:, None]  # ends exactly at draws + offset
    passed = steps.floor()
    taken = torch.diff(passed, dim=1, prepend=torch.zeros_like(passed[:, :1])) > 0
    return (taken | is_certain).nonzero()[:, 1].view(len(probability), k), threshold[:, 0]
