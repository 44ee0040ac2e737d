"""Heads with exact logits, and the dense float64 references that what is kept of them is compared with.

The features are the unit vectors and the weights the logits themselves, so that no rounding comes in.
"""

import torch
from torch import Tensor

from cache_tools.teacher.head import BlockedHead, Head
from cache_tools.teacher.logits import KeptLogits, keep_topk
from cache_tools.teacher.threshold import threshold_of

TEMPERATURES = (0.5, 1.0, 2.0, 4.0)
TOLERANCE = 2e-5  # of a log-probability or a log-mass, in float32
SEEDS = [0, 1, 2]


def exact_head(logits: Tensor) -> tuple[Tensor, Head]:
    """Features and a head whose logits are exactly these [T, V] float32."""
    return torch.eye(len(logits)), Head(logits.T.contiguous(), torch.zeros(logits.shape[1]))


def random_logits(seed: int, vocab_size: int, targets: int = 5) -> Tensor:
    return torch.randn(targets, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3


def random_seen(seed: int, vocab_size: int) -> Tensor:
    return torch.rand(vocab_size, generator=torch.Generator().manual_seed(1000 + seed)) < 0.3


def topk_of(logits: Tensor, k: int, seen: Tensor, temperatures: tuple[float, ...] = TEMPERATURES) -> KeptLogits:
    features, head = exact_head(logits)
    return keep_topk(features, BlockedHead(head, seen), k, temperatures)


def threshold_sample(probability: Tensor, k: int, offset: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, in one running sum over the vocabulary: ids [T, k] ascending and τ [T].

    `probability` [T, V] float64 sums to 1, `offset` [T] in [0, 1).
    """
    largest, largest_id = probability.topk(k, dim=1)
    certain, threshold = threshold_of(largest, probability.scatter(1, largest_id, 0.0).sum(1, keepdim=True), 1e-9)
    is_certain = torch.zeros_like(probability, dtype=torch.bool)
    is_certain.scatter_(1, largest_id, torch.arange(k) < certain)
    running = probability.masked_fill(is_certain, 0.0).cumsum(1)
    steps = (running / running[:, -1:] * (k - certain) + offset[:, None]).floor()
    taken = torch.diff(steps, dim=1, prepend=torch.zeros_like(steps[:, :1])) > 0
    return (taken | is_certain).nonzero()[:, 1].view(len(probability), k), threshold[:, 0]


def assert_equals_the_dense_reference(
    kept: KeptLogits, logits: Tensor, k: int, seen: Tensor, tolerance: float = TOLERANCE
) -> None:
    logprob = logits.double().log_softmax(1)
    expected = torch.argsort(logits, dim=1, descending=True, stable=True)[:, :k]
    torch.testing.assert_close(kept.ids, expected, rtol=0, atol=0)
    torch.testing.assert_close(kept.logprob.double(), logprob.gather(1, expected), rtol=0, atol=tolerance)
    assert_tails_are_the_others(kept, logprob, seen, TEMPERATURES, tolerance)


def assert_tails_are_the_others(
    kept: KeptLogits, logprob: Tensor, seen: Tensor, temperatures: tuple[float, ...], tolerance: float = TOLERANCE
) -> None:
    """Both tails are exactly what the kept ids leave of `logprob` [T, V] float64."""
    others = logprob.scatter(1, kept.ids, -torch.inf)
    for found, rest in (
        (kept.tail_logmass, others),
        (kept.tail_logmass_seen, others.masked_fill(~seen, -torch.inf)),
    ):
        assert found.dtype == torch.float32
        for index, temperature in enumerate(temperatures):
            reference = (rest / temperature).logsumexp(1)
            torch.testing.assert_close(found[:, index].double(), reference, rtol=1e-6, atol=tolerance)
