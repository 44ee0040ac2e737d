"""The student's head at its targets, without ever materialising a [targets, vocabulary] matrix."""

import math
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY_SLICE = 4096
ALIGNMENT = 16
LOG2_E = 1 / math.log(2)  # exp2 is several times faster than exp on CPUs


class Lookup(torch.autograd.Function):
    """Rows of a weight that the head also uses. The gradient is added to the head's, which is always computed first, so
    that a step holds one gradient of its largest tensor instead of two."""

    @staticmethod
    def forward(context: Any, weight: Tensor, ids: Tensor, grad_buffer: list[Tensor]) -> Tensor:
        context.save_for_backward(ids)
        context.shape, context.grad_buffer = weight.shape, grad_buffer
        return nn.functional.embedding(ids, weight)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (ids,), (d_rows,) = context.saved_tensors, gradients
        d_weight = context.grad_buffer.pop() if context.grad_buffer else d_rows.new_zeros(context.shape)
        return d_weight.index_add_(0, ids.flatten(), d_rows.flatten(0, -2).to(d_weight.dtype)), None, None


class SparseHead(torch.autograd.Function):
    """Logits of a few tokens of each target, and the log-sum-exp of all others, a vocabulary slice at a time.

    The backward pass computes the slices again instead of storing them. Targets are columns: products with the
    vocabulary as rows are the fastest, most of all with a multiple of 16 columns.
    """

    @staticmethod
    def forward(
        context: Any, features: Tensor, weight: Tensor, bias: Tensor, kept_id: Tensor, label_id: Tensor,
        temperatures: tuple[float, ...], grad_buffer: list[Tensor] | None, corpus: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        targets = len(features)
        corpus = None if corpus is None else nn.functional.pad(corpus, (0, -targets % ALIGNMENT))  # [T']
        features, kept_id = _aligned(features, 0.0), _aligned(kept_id, -1).T  # [T', H], [k, T']
        label_id = _aligned(label_id[:, None], 0).T  # [1, T']
        kept = features.new_full(kept_id.shape, -torch.inf)
        label = features.new_full(label_id.shape, -torch.inf)
        rest = features.new_full((len(temperatures), len(features)), -torch.inf)  # [n_T, T']
        for start, stop in slices(len(weight)):
            logits = slice_logits(features, weight, bias, start, stop, corpus)  # [N + 1, T']
            at, known = _rows_of(kept_id, start, stop)
            kept = torch.where(known, logits.gather(0, at), kept)
            label_at, label_known = _rows_of(label_id, start, stop)
            label = torch.where(label_known, logits.gather(0, label_at), label)
            logits.scatter_(0, at, -torch.inf)
            largest = logits.amax(0).clamp(min=torch.finfo(logits.dtype).min)  # [T'], also where nothing is left
            logits -= largest
            for index, temperature in enumerate(temperatures):
                total = torch.mul(logits, LOG2_E / temperature).exp2_().sum(0).log() + largest / temperature
                rest[index] = torch.logaddexp(rest[index], total)
        context.save_for_backward(features, weight, bias, kept_id, label_id, rest, corpus)
        context.temperatures, context.grad_buffer = temperatures, grad_buffer
        return kept.T[:targets], label[0, :targets], rest.T[:targets]

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, bias, kept_id, label_id, rest, corpus = context.saved_tensors
        of_kept, of_label, of_rest = gradients
        targets, columns = len(of_label), (of_kept, of_label[:, None], of_rest)
        d_kept, d_label, d_rest = (_aligned(g, 0.0).T for g in columns)  # [k | 1 | n_T, T']
        finite_rest = rest.masked_fill(rest == -torch.inf, 0.0)  # an empty rest passes no gradient
        d_features = torch.zeros_like(features)
        d_weight, d_bias = torch.empty_like(weight), torch.zeros_like(bias)
        for start, stop in slices(len(weight)):
            at, _ = _rows_of(kept_id, start, stop)
            label_at, _ = _rows_of(label_id, start, stop)
            logits = slice_logits(features, weight, bias, start, stop, corpus)  # [N + 1, T']
            logits.scatter_(0, at, -torch.inf)
            parts = (
                torch.sub(logits, finite_rest[index] * temperature)
                .mul_(LOG2_E / temperature)
                .exp2_()
                .mul_(d_rest[index] / temperature)
                for index, temperature in enumerate(context.temperatures)
            )
            d_logits = next(parts)
            for part in parts:
                d_logits += part
            d_logits.scatter_add_(0, at, d_kept).scatter_add_(0, label_at, d_label)
            inside = d_logits[:-1]  # [N, T']
            d_features.addmm_(inside.T, weight[start:stop])
            torch.mm(inside, features, out=d_weight[start:stop])
            if corpus is None:
                d_bias[0, start:stop] = inside.sum(1)
            else:
                d_bias[:, start:stop].index_add_(0, corpus, inside.T)
        if context.grad_buffer is None:
            return d_features[:targets], d_weight, d_bias, None, None, None, None, None
        context.grad_buffer.append(d_weight)
        return d_features[:targets], None, d_bias, None, None, None, None, None


def _aligned(values: Tensor, fill: float) -> Tensor:
    """Pad `values` [T, n] to [T', n] with rows of `fill`, up to the next multiple of 16."""
    return nn.functional.pad(values, (0, 0, 0, -len(values) % ALIGNMENT), value=fill)


def slices(vocab_size: int) -> list[tuple[int, int]]:
    """Return the first id of each slice of the vocabulary, and the first after it."""
    return [(s, min(s + VOCABULARY_SLICE, vocab_size)) for s in range(0, vocab_size, VOCABULARY_SLICE)]


def slice_logits(
    features: Tensor, weight: Tensor, bias: Tensor, start: int, stop: int, corpus: Tensor | None = None
) -> Tensor:
    """Return logits [N + 1, T] of N ids start … stop; the last row, of every id outside, is −∞.

    `bias` [C, V] has a row for each value of `corpus` [T], or one only.
    """
    logits = features.new_empty(stop - start + 1, len(features))
    torch.mm(weight[start:stop], features.T, out=logits[:-1])
    logits[:-1] += (bias[:, start:stop] if corpus is None else bias[corpus, start:stop]).T
    logits[-1] = -torch.inf
    return logits


def _rows_of(ids: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Return the rows of these ids in a slice, for those outside the last row, and which are inside."""
    inside = (ids >= start) & (ids < stop)
    return torch.where(inside, ids - start, stop - start), inside


def lookup(weight: Tensor, ids: Tensor, grad_buffer: list[Tensor]) -> Tensor:
    """Return rows `ids` […] of `weight` [V, H] as […, H]. Call `sparse_head` with the same weight and empty list."""
    rows: Tensor = Lookup.apply(weight, ids, grad_buffer)
    return rows


def sparse_head(
    features: Tensor, weight: Tensor, bias: Tensor, kept_id: Tensor, label_id: Tensor, temperatures: tuple[float, ...],
    grad_buffer: list[Tensor] | None = None, corpus: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return (kept [T, k], label [T], rest [T, n_T]), differentiable in features [T, H], weight [V, H] and bias: [V],
    or [C, V] of which each target takes the row `corpus` [T].

    kept: logits at `kept_id` [T, k] int64, −∞ for id −1. label: logits at `label_id` [T].
    rest: log Σ exp(logit / T) over all ids that are not kept, for each of `temperatures`; −∞ if none is left.
    A bias of −∞ excludes an id altogether. With a list `grad_buffer`, the gradient of the weight goes through it to the
    `lookup` that the features come from, which returns the sum of both.
    """
    kept, label, rest = SparseHead.apply(
        features, weight, torch.atleast_2d(bias), kept_id, label_id, temperatures, grad_buffer, corpus
    )
    return kept, label, rest
