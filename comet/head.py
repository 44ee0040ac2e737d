"""The student's head at its targets, without ever holding a [targets, vocabulary] matrix."""

from typing import Any

import torch
from torch import Tensor

VOCABULARY_SLICE = 16384


class SparseHead(torch.autograd.Function):
    """Logits of a few tokens of each target, and the log-sum-exp of all others, a vocabulary slice at a time.

    The slices are computed again in the backward pass instead of being kept.
    """

    @staticmethod
    def forward(
        context: Any, features: Tensor, weight: Tensor, bias: Tensor, kept_id: Tensor, truth_id: Tensor,
        temperatures: tuple[float, ...],
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        targets = len(features)
        kept = features.new_full(kept_id.shape, -torch.inf, dtype=torch.float32)  # [T, k]
        truth = features.new_full((targets, 1), -torch.inf, dtype=torch.float32)
        rest = features.new_full((targets, len(temperatures)), -torch.inf, dtype=torch.float32)
        for start, stop in slices(len(weight)):
            logits = slice_logits(features, weight, bias, start, stop)  # [T, C + 1]
            at, known = columns(kept_id, start, stop)
            kept = torch.where(known, logits.gather(1, at), kept)
            true_at, true_known = columns(truth_id[:, None], start, stop)
            truth = torch.where(true_known, logits.gather(1, true_at), truth)
            logits.scatter_(1, at, -torch.inf)
            for index, temperature in enumerate(temperatures):
                rest[:, index] = torch.logaddexp(rest[:, index], (logits / temperature).logsumexp(1))
        context.save_for_backward(features, weight, bias, kept_id, truth_id, rest)
        context.temperatures = temperatures
        return kept, truth[:, 0], rest

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, bias, kept_id, truth_id, rest = context.saved_tensors
        d_kept, d_truth, d_rest = gradients
        finite_rest = rest.masked_fill(rest == -torch.inf, 0.0)  # an empty rest passes no gradient
        d_features = torch.zeros_like(features)
        d_weight, d_bias = torch.empty_like(weight), torch.empty_like(bias)
        for start, stop in slices(len(weight)):
            at, _ = columns(kept_id, start, stop)
            true_at, _ = columns(truth_id[:, None], start, stop)
            logits = slice_logits(features, weight, bias, start, stop).scatter_(1, at, -torch.inf)  # [T, C + 1]
            d_logits = torch.zeros_like(logits)
            for index, temperature in enumerate(context.temperatures):
                share = (logits / temperature - finite_rest[:, index, None]).exp()
                d_logits += share * (d_rest[:, index, None] / temperature)
            d_logits.scatter_add_(1, at, d_kept).scatter_add_(1, true_at, d_truth[:, None])
            inside = d_logits[:, : stop - start]
            d_features += inside @ weight[start:stop]
            d_weight[start:stop] = inside.T @ features
            d_bias[start:stop] = inside.sum(0)
        return d_features, d_weight, d_bias, None, None, None


def slices(vocab_size: int) -> list[tuple[int, int]]:
    return [(s, min(s + VOCABULARY_SLICE, vocab_size)) for s in range(0, vocab_size, VOCABULARY_SLICE)]


def slice_logits(features: Tensor, weight: Tensor, bias: Tensor, start: int, stop: int) -> Tensor:
    """[T, C + 1] logits of ids start … stop, and a last column of −inf that stands for every id outside."""
    logits = features.new_full((len(features), stop - start + 1), -torch.inf)
    logits[:, :-1] = torch.addmm(bias[start:stop], features, weight[start:stop].T)
    return logits


def columns(ids: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Columns of these ids in a slice, the last column for those outside; and which are inside."""
    inside = (ids >= start) & (ids < stop)
    return torch.where(inside, ids - start, stop - start), inside


def sparse_head(
    features: Tensor, weight: Tensor, bias: Tensor, kept_id: Tensor, truth_id: Tensor, temperatures: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """(kept [T, k], truth [T], rest [T, n_T]), differentiable in features [T, H], weight [V, H] and bias [V].

    kept: logits at `kept_id` [T, k] int64, −inf where the id is −1. truth: logits at `truth_id` [T].
    rest: log Σ exp(logit / T) over all ids that are not kept, for each of `temperatures`; −inf where none is left.
    A bias of −inf takes an id out altogether.
    """
    kept, truth, rest = SparseHead.apply(features, weight, bias, kept_id, truth_id, temperatures)
    return kept, truth, rest
