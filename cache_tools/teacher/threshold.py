"""The threshold sample: exactly k tokens of a distribution that stand for all of it without bias.

Priority sampling with a threshold (Duffield, Lund, Thorup 2007, https://doi.org/10.1145/1314690.1314696), the light
tokens drawn systematically: τ solves Σ min(1, p / τ) = k; every p ≥ τ is kept; the others are taken where the running
sum of p / τ passes a whole number. A kept token stands for max(p, τ), and these weights sum to 1.
"""

import torch
from torch import Tensor

from cache_tools.teacher.head import BlockedHead
from cache_tools.teacher.logits import KeptLogits, joined, kept_logits

ROUNDING = 1e-5  # a token this near to τ is kept for certain, since the sums of blocks are float32


def keep_threshold_sample(
    features: Tensor, head: BlockedHead, k: int, temperatures: tuple[float, ...], offset: Tensor
) -> KeptLogits:
    """A threshold sample of k tokens of each target by falling probability, and the tails.

    The running sum goes through the head's blocks in their order, block sums first and then the few blocks where it
    passes a whole number. `features` [T, H]; `offset` [T] float64 in [0, 1) is where the sum starts, in multiples of
    2⁻³², so that adding it to a whole number is exact. Should a target not yield exactly k tokens, its threshold is
    NaN. Raises ValueError unless k is below the size of the vocabulary.
    """
    if k >= head.vocab_size:
        raise ValueError(f"a threshold sample of {k} from {head.vocab_size} tokens is not a sample")
    parts = []
    for portion in head.portions(len(features)):
        blocks, start = head.block_logits(features[portion], temperatures), offset[portion, None]
        log_block = blocks.log_sums[1.0].T.contiguous()  # [T, n]
        log_total = log_block.logsumexp(1, keepdim=True)  # [T, 1]

        likeliest = blocks.open_likeliest(k)
        key, best = likeliest.rank.flatten(1).topk(k, dim=1)  # [T, k]
        values = likeliest.logits.flatten(1)
        rest = torch.cat([log_block.scatter(1, likeliest.number, -torch.inf), values.scatter(1, best, -torch.inf)], 1)
        certain, threshold = threshold_of(
            probability(values.gather(1, best), log_total),
            probability(rest.logsumexp(1, keepdim=True), log_total),
        )
        edge = key.gather(1, certain)[..., None]  # [T, 1, 1] rank of the likeliest token that is not certain

        is_certain = likeliest.rank > edge  # [T, c, BLOCK]
        light = probability(likeliest.logits.masked_fill(is_certain, -torch.inf), log_total[..., None])
        mass = probability(log_block, log_total).scatter(
            1, likeliest.number, light.sum(2)
        )  # [T, n] without the certain
        steps = systematic_steps(mass, k - certain, start)  # [T, n]
        keeps = torch.diff(steps.floor(), dim=1, prepend=torch.zeros_like(start)) > 0
        keeps |= torch.zeros_like(keeps).scatter(1, likeliest.number, is_certain.any(2))  # at most k blocks
        opened = blocks.open(keeps.byte().topk(min(k, keeps.shape[1]), dim=1).indices)

        is_certain = opened.rank > edge
        light = probability(opened.logits.masked_fill(is_certain, -torch.inf), log_total[..., None])
        ends = torch.cat([start, steps], dim=1)  # [T, n + 1]
        taken = taken_within(light, ends.gather(1, opened.number), ends.gather(1, opened.number + 1))
        kept = (is_certain | taken).flatten(1)
        chosen = opened.rank.flatten(1).masked_fill(~kept, torch.iinfo(torch.int64).min).topk(k, dim=1).indices
        threshold = threshold.masked_fill(kept.sum(1, keepdim=True) != k, torch.nan)
        parts.append(kept_logits(blocks, opened, chosen, temperatures, threshold[:, 0].float()))
    return joined(parts)


def probability(logits: Tensor, log_total: Tensor) -> Tensor:
    """In float64, where masses of 1e-40 are still exact."""
    return (logits - log_total).double().exp()


def threshold_of(largest: Tensor, rest: Tensor, rounding: float = ROUNDING) -> tuple[Tensor, Tensor]:
    """How many tokens are kept for certain, and τ, both [T, 1].

    `largest` [T, k] are the k largest probabilities, falling, and `rest` [T, 1] the mass of all others, float64. A
    token within `rounding` of τ counts as certain.
    """
    k = largest.shape[1]
    light = rest + largest.flip(1).cumsum(1).flip(1)  # [T, k] mass from the j-th on, summed: 1 − the others cancels
    share = light / (k - torch.arange(k, device=largest.device))  # τ if exactly the j largest are certain
    reaches = largest >= share * (1 - rounding)
    certain = reaches.cumprod(1).sum(1, keepdim=True).clamp(max=k - 1)
    return certain, share.gather(1, certain)


def systematic_steps(mass: Tensor, draws: Tensor, start: Tensor) -> Tensor:
    """[T, n] the running sum of `mass` [T, n], scaled and shifted to go from `start` to `draws` + `start` [T, 1].

    Where it passes a whole number a draw falls. The last step is exactly `draws` + `start`.
    """
    running = mass.cumsum(1)
    return running / running[:, -1:] * draws + start


def taken_within(mass: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """[T, c, b] bool: where draws fall inside blocks of `mass` [T, c, b], when the running sum enters a block at
    `before` and leaves it at `after` [T, c]."""
    running = mass.cumsum(2)
    share = running / running[..., -1:].clamp(min=torch.finfo(mass.dtype).tiny)
    steps = before[..., None] + share * (after - before)[..., None]
    steps = torch.where(running == running[..., -1:], after[..., None], steps)
    return torch.diff(steps.floor(), dim=2, prepend=before[..., None].floor()) > 0
