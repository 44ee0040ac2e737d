"""Heads with exact logits, and the dense float64 references that what is kept of them is compared with.

The features are the unit vectors and the weights the logits themselves, so that no rounding comes in.
"""

import math

import torch
from torch import Tensor

from cache_tools.teacher.head import BlockedHead, Head
from cache_tools.teacher.topk import TopLogits, keep_topk

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


def topk_of(logits: Tensor, k: int, seen: Tensor, temperatures: tuple[float, ...] = TEMPERATURES) -> TopLogits:
    features, head = exact_head(logits)
    return keep_topk(features, BlockedHead(head, seen), k, temperatures)


def threshold_sample(probability: Tensor, k: int, offset: float) -> dict[int, float]:
    """The definition, token by token for one target: what each kept token stands for.

    `probability` [V] float64 sums to 1, `offset` in [0, 1).
    """
    weights = {token: p for token, p in enumerate(probability.tolist()) if p >= 1 / k}
    best = int(probability.argmax())
    weights.setdefault(best, float(probability[best]))
    others = [(token, p) for token, p in enumerate(probability.tolist()) if token not in weights]
    left = sum(p for _, p in others)
    spacing = max(1 / k, left / max(k - len(weights), 1))
    running = offset
    for token, p in others:
        if math.floor(running + p / spacing) > math.floor(running):
            weights[token] = spacing
        running += p / spacing
    return weights


def entropies(probability: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """(−Σ p log p, −Σ p log(p / P) over the seen tokens of mass P), [T] each, for `probability` [T, V] float64."""
    of_seen = probability[:, seen]
    mass = of_seen.sum(1, keepdim=True)
    return -torch.xlogy(probability, probability).sum(1), -torch.xlogy(of_seen, of_seen / mass).sum(1)


def assert_equals_the_dense_reference(
    kept: TopLogits, logits: Tensor, k: int, seen: Tensor, tolerance: float = TOLERANCE
) -> None:
    logprob = logits.double().log_softmax(1)
    expected = torch.argsort(logits, dim=1, descending=True, stable=True)[:, :k]
    torch.testing.assert_close(kept.ids, expected, rtol=0, atol=0)
    torch.testing.assert_close(kept.logprob.double(), logprob.gather(1, expected), rtol=0, atol=tolerance)
    assert_tails_are_the_others(kept, logprob, seen, TEMPERATURES, tolerance)


def assert_tails_are_the_others(
    kept: TopLogits, logprob: Tensor, seen: Tensor, temperatures: tuple[float, ...], tolerance: float = TOLERANCE
) -> None:
    """Both tails are exactly what the kept ids leave of `logprob` [T, V] float64."""
    others = logprob.scatter(1, kept.ids, -torch.inf)
    for found, rest in ((kept.tail_logmass, others), (kept.tail_logmass_seen, others.masked_fill(~seen, -torch.inf))):
        assert found.dtype == torch.float32
        for index, temperature in enumerate(temperatures):
            reference = (rest / temperature).logsumexp(1)
            torch.testing.assert_close(found[:, index].double(), reference, rtol=1e-6, atol=tolerance)
