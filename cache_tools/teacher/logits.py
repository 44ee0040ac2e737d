"""What is kept of the teacher's distribution at a target: the best or a sample of its tokens, and the tail.

Logits are formed in float32 a slice at a time; what is not kept joins the tail directly, since total − kept would
cancel where the tail is small.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

VOCABULARY_SLICE = 16384
TARGET_SLICE = 64


@dataclass(frozen=True)
class Head:
    """The last linear layer of a masked-LM head: weight [V, H], bias [V], on the device of the features."""

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor, ids: slice) -> Tensor:
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

    `features` [T, H]; `seen` [V] bool, the ids that occur in the corpus. One pass over slices of the vocabulary;
    never more than [T, slice] logits at a time.
    """
    targets, vocab_size = len(features), len(head.weight)
    device = features.device
    best = torch.full((targets, 0), -torch.inf, device=device)
    best_id = torch.zeros((targets, 0), dtype=torch.int64, device=device)
    tail = RunningTail(targets, temperatures, device)
    for start in range(0, vocab_size, VOCABULARY_SLICE):
        ids = slice(start, min(start + VOCABULARY_SLICE, vocab_size))
        candidate = torch.cat([best, head.logits(features, ids)], dim=1)  # [T, k + slice]
        slice_id = torch.arange(ids.start, ids.stop, device=device).expand(targets, -1)
        candidate_id = torch.cat([best_id, slice_id], dim=1)  # [T, k + slice]; equal logits stand in order of id
        chosen = top_positions(candidate, min(k, candidate.shape[1]))
        best, best_id = candidate.gather(1, chosen), candidate_id.gather(1, chosen)
        tail.add(candidate.scatter(1, chosen, -torch.inf), seen[candidate_id])
    log_total = torch.logaddexp(best.logsumexp(1), tail.logmass_at_one())  # [T], at temperature 1
    tails, tails_seen = tail.logmass(log_total)
    order = torch.argsort(best, dim=1, descending=True, stable=True)
    return KeptLogits(
        best_id.gather(1, order), best.gather(1, order) - log_total[:, None], tails, tails_seen, threshold=None
    )


def top_positions(values: Tensor, k: int) -> Tensor:
    """[T, k] ascending positions of the k largest values of each row of [T, C], ties to the lower position."""
    kth = values.topk(k, dim=1).values[:, -1:]  # [T, 1]
    above = values > kth
    wanted = above | (values == kth)
    surplus = wanted.sum(1) > k
    if surplus.any():  # topk breaks ties as it likes: keep the first of those that equal the k-th
        tied = values[surplus] == kth[surplus]
        room = k - above[surplus].sum(1, keepdim=True)
        wanted[surplus] = above[surplus] | (tied & (tied.cumsum(1) <= room))
    return wanted.nonzero()[:, 1].view(len(values), k)


class RunningTail:
    """Sums of exp(logit / T) over the tokens not kept, over all of them and over those seen, for each temperature.

    Sums are relative to the largest logit of the tail so far, so a tail of 1e-30 is as exact as one of 0.5.
    Temperature 1 is always among them, for the normaliser.
    """

    def __init__(self, targets: int, temperatures: tuple[float, ...], device: torch.device) -> None:
        self.temperatures = temperatures
        self.summed = tuple(dict.fromkeys((1.0, *temperatures)))
        self.largest = torch.full((targets, 1), torch.finfo(torch.float32).min, device=device)
        self.sums = torch.zeros((targets, len(self.summed), 2), device=device)  # last axis: all, seen

    def add(self, logits: Tensor, seen: Tensor) -> None:
        """`logits` [T, C] with kept tokens at −inf; `seen` [T, C] bool."""
        largest = torch.maximum(self.largest, logits.amax(1, keepdim=True))  # [T, 1]
        for index, temperature in enumerate(self.summed):
            self.sums[:, index] *= ((self.largest - largest) / temperature).exp()
            mass = ((logits - largest) / temperature).exp()  # [T, C]
            self.sums[:, index, 0] += mass.sum(1)
            self.sums[:, index, 1] += (mass * seen).sum(1)
        self.largest = largest

    def logmass_at_one(self) -> Tensor:
        """[T] log of the summed exp(logit) of the tail; −inf where the tail is empty."""
        return self.sums[:, 0, 0].log() + self.largest[:, 0]

    def logmass(self, log_total: Tensor) -> tuple[Tensor, Tensor]:
        """([T, n_T], [T, n_T]): log Σ exp(logprob / T) over the tail, all and seen, given log Σ exp(logit) [T]."""
        temperature = torch.tensor(self.summed, device=log_total.device)
        shift = (self.largest - log_total[:, None]) / temperature  # [T, summed]
        logmass = self.sums.log() + shift[:, :, None]
        wanted = [self.summed.index(t) for t in self.temperatures]
        return logmass[:, wanted, 0], logmass[:, wanted, 1]


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
    heavier = largest.cumsum(1) - largest  # [T, k] mass of the tokens before the j-th
    light = torch.clamp(1.0 - heavier, min=0.0)
    share = light / (k - torch.arange(k, device=probability.device))  # τ if exactly the j largest are certain
    certain = (largest >= share).cumprod(1).sum(1).clamp(max=k - 1)  # [T] how many are kept for certain
    threshold = share.gather(1, certain[:, None])  # [T, 1]
    is_certain = torch.zeros_like(probability, dtype=torch.bool)
    is_certain.scatter_(1, largest_id, torch.arange(k, device=probability.device) < certain[:, None])

    draws = (k - certain)[:, None].double()  # [T, 1] how many of the light tokens are taken
    running = probability.masked_fill(is_certain, 0.0).cumsum(1)  # [T, V]
    steps = running / running[:, -1:] * draws + offset[:, None]  # ends exactly at draws + offset
    passed = steps.floor()
    taken = torch.diff(passed, dim=1, prepend=torch.zeros_like(passed[:, :1])) > 0
    return (taken | is_certain).nonzero()[:, 1].view(len(probability), k), threshold[:, 0]
