"""The threshold sample: a few tokens that stand for a whole distribution without bias.

Threshold sampling (Duffield, Lund, Thorup 2007, https://doi.org/10.1145/1314690.1314696) with the threshold τ = 1 / k
for every target: each token with p ≥ τ is kept and stands for p; of the others one is drawn wherever their running sum
passes a multiple of τ, and stands for τ (systematic sampling). That makes at most k tokens, fewer where the teacher is
sure, and a draw tells as much at every target: equal τ gives the least variance of a batch's gradient for equally many
tokens. The most probable token is always kept; where it is below τ, the k − 1 draws stand for the rest in equal parts.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from cache_tools.teacher.head import HIGHEST_ID, BlockedHead, BlockLogits, OpenedBlocks, ranked_ids

NOT_KEPT = torch.iinfo(torch.int64).min


@dataclass(frozen=True)
class ThresholdSample:
    """What a cache stores of T targets, a sample for each of n_T temperatures.

    `ids` [T, n_T, k] int64: first the tokens kept for certain by falling p, then the drawn ones by rising id, then −1.
    `logweight` [T, n_T, k]: log of what each stands for, log p or log τ; −∞ in unused slots. `entropy` [T, n_T]:
    −Σ p log p over the vocabulary. `entropy_seen` [T, n_T]: −Σ p log(p / P) over the corpus's tokens, of mass P.
    """

    ids: Tensor
    logweight: Tensor
    entropy: Tensor
    entropy_seen: Tensor


def keep_threshold_sample(
    features: Tensor, head: BlockedHead, k: int, temperatures: tuple[float, ...], offset: Tensor
) -> ThresholdSample:
    """A threshold sample of at most k tokens of each target at each temperature.

    The running sum goes through the head's blocks in their order, block sums first and then the few blocks where it
    passes a multiple of τ. `features` [T, H]; `offset` [T] float64 in [0, 1) is where the sum starts, in multiples of
    2⁻³², so that adding it to a whole number is exact. Should rounding ever lose or add a token, the weights of that
    target are NaN. Raises ValueError for k below 2, of which no sample can be made.
    """
    if k < 2:
        raise ValueError(f"a threshold sample of {k}: expected at least 2 tokens")
    parts = []
    for portion in head.portions(len(features)):
        blocks = head.block_logits(features[portion], temperatures, with_entropy=True)
        likeliest = blocks.open_likeliest(k)
        for_each = [sample_at(t, blocks, likeliest, k, offset[portion, None]) for t in temperatures]
        parts.append(ThresholdSample(*(torch.stack(columns, dim=1) for columns in zip(*for_each, strict=True))))
    return ThresholdSample(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(ThresholdSample)))


def sample_at(
    temperature: float, blocks: BlockLogits, likeliest: OpenedBlocks, k: int, start: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(ids [T, k], logweight [T, k], entropy [T], entropy_seen [T]) at one temperature; `start` [T, 1]."""
    log_block = blocks.log_sums[temperature].T.contiguous()  # [T, n]
    log_total = log_block.logsumexp(1, keepdim=True)  # [T, 1]
    best = likeliest.rank.flatten(1).amax(1)[:, None, None]  # [T, 1, 1]

    def looked_at(opened: OpenedBlocks) -> tuple[Tensor, Tensor, Tensor]:
        """log p, whether it is kept for certain, and p where it is not, all [T, c, BLOCK]."""
        logprob = opened.logits / temperature - log_total[..., None]
        is_certain = (logprob >= -math.log(k)) | (opened.rank == best)
        return logprob, is_certain, logprob.masked_fill(is_certain, -torch.inf).double().exp()

    _, is_certain, light = looked_at(likeliest)
    certain = is_certain.sum((1, 2))[:, None]  # [T, 1]
    mass = (log_block - log_total).double().exp().scatter(1, likeliest.number, light.sum(2))  # [T, n] of the others
    total = mass.sum(1, keepdim=True)
    spacing = (total / (k - certain).clamp(min=1)).clamp(min=1 / k)
    draws = torch.minimum(total / spacing, k - certain)  # between two whole numbers, but where the best is below τ
    steps = systematic_steps(mass, draws, start)  # [T, n]
    keeps = torch.diff(steps.floor(), dim=1, prepend=torch.zeros_like(start)) > 0
    keeps |= torch.zeros_like(keeps).scatter(1, likeliest.number, is_certain.any(2))  # at most k blocks
    opened = blocks.open(keeps.byte().topk(min(k, keeps.shape[1]), dim=1).indices)

    logprob, is_certain, light = looked_at(opened)
    ends = torch.cat([start, steps], dim=1)  # [T, n + 1]
    taken = taken_within(light, ends.gather(1, opened.number), ends.gather(1, opened.number + 1))
    drawn_key = NOT_KEPT + (opened.rank & HIGHEST_ID)  # below every rank, rising as the id falls
    key = opened.rank.where(is_certain, drawn_key.masked_fill(~taken, NOT_KEPT)).flatten(1)  # [T, c · BLOCK]
    found = (key > NOT_KEPT).sum(1, keepdim=True)
    chosen = key.topk(k, dim=1)
    kept_certain = is_certain.flatten(1).gather(1, chosen.indices)
    logweight = logprob.flatten(1).gather(1, chosen.indices).where(kept_certain, spacing.log().float())
    unused = chosen.values == NOT_KEPT
    logweight = logweight.masked_fill(unused, -torch.inf)
    logweight = logweight.masked_fill(found != certain + (start + draws).floor(), torch.nan)
    ids = ranked_ids(chosen.values).masked_fill(unused, -1)
    return ids, logweight, *blocks.entropies(temperature)


def systematic_steps(mass: Tensor, draws: Tensor, start: Tensor) -> Tensor:
    """[T, n] the running sum of `mass` [T, n], scaled and shifted to go from `start` to `draws` + `start` [T, 1].

    Where it passes a whole number a draw falls. The last step is exactly `draws` + `start`.
    """
    running = mass.cumsum(1)
    share = running / running[:, -1:].clamp(min=torch.finfo(mass.dtype).tiny)
    return torch.where(running == running[:, -1:], draws, share * draws) + start


def taken_within(mass: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """[T, c, b] bool: where draws fall inside blocks of `mass` [T, c, b], when the running sum enters a block at
    `before` and leaves it at `after` [T, c]."""
    running = mass.cumsum(2)
    share = running / running[..., -1:].clamp(min=torch.finfo(mass.dtype).tiny)
    steps = before[..., None] + share * (after - before)[..., None]
    steps = torch.where(running == running[..., -1:], after[..., None], steps)
    return torch.diff(steps.floor(), dim=2, prepend=before[..., None].floor()) > 0
