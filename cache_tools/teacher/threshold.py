"""The signal `threshold`: a few tokens that stand for a whole distribution without bias.

Threshold sampling (Duffield, Lund, Thorup 2007, https://doi.org/10.1145/1314690.1314696) with the threshold τ = 1 / k
for every target: each token with p ≥ τ is kept and stands for p; of the others one is drawn wherever their running sum
passes a multiple of τ, and stands for τ (systematic sampling). That makes at most k tokens, fewer where the teacher is
certain. Equal τ makes every draw equally informative: a batch's gradient has the least variance for equally many
tokens. The most probable token is always kept; if it is below τ, the k − 1 draws stand for the rest in equal parts.
"""

import math
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools.signals import HALF
from cache_tools.store.recipe import Recipe
from cache_tools.teacher.comparison import Arrays, Errors, both_ways, bucketed_kl, looked_up
from cache_tools.teacher.head import HIGHEST_ID, BlockedHead, BlockLogits, OpenedBlocks, ranked_ids, rounded_nats
from cache_tools.teacher.model import Observation

LEAST_DEVIATION = 2.0  # nats, of the log-probabilities of drawn tokens: a few may lie close together by chance
NOT_KEPT = torch.iinfo(torch.int64).min


@dataclass(frozen=True)
class ThresholdSample:
    """The stored arrays of T targets, one sample for each of n_T temperatures.

    `ids` [T, n_T, k] int64: first the tokens kept for certain by falling p, then the drawn ones by rising id, then −1.
    `logweight` [T, n_T, k]: log of each token's weight, log p or log τ; −∞ in unused slots. `entropy` [T, n_T]:
    −Σ p log p over the vocabulary. `entropy_seen` [T, n_T]: −Σ p log(p / P) over the corpus's tokens, of mass P.
    """

    ids: Tensor
    logweight: Tensor
    entropy: Tensor
    entropy_seen: Tensor


def keep_threshold_sample(
    features: Tensor, head: BlockedHead, k: int, temperatures: tuple[float, ...], offset: Tensor
) -> ThresholdSample:
    """Draw a threshold sample of at most k tokens of each target at each temperature.

    The running sum goes through the head's blocks in their order, block sums first and then the few blocks where it
    passes a multiple of τ. `features` [T, H]; `offset` [T] float64 in [0, 1) is where the sum starts, in multiples of
    2⁻³², so that adding it to a whole number is exact. Should rounding ever lose or add a token, the weights of that
    target are NaN. Raises ValueError if k is below 2, too few for a sample.
    """
    if k < 2:
        raise ValueError(f"a threshold sample of {k}: expected at least 2 tokens")
    parts = []
    for portion in head.portions(len(features)):
        blocks = head.block_logits(features[portion], temperatures, with_entropy=True)
        likeliest = blocks.open_likeliest(k)
        samples = [_sample_at(t, blocks, likeliest, k, offset[portion, None]) for t in temperatures]
        parts.append(ThresholdSample(*(torch.stack(columns, dim=1) for columns in zip(*samples, strict=True))))
    return ThresholdSample(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(ThresholdSample)))


def _sample_at(
    temperature: float, blocks: BlockLogits, likeliest: OpenedBlocks, k: int, start: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (ids [T, k], logweight [T, k], entropy [T], entropy_seen [T]) at one temperature; `start` [T, 1]."""
    log_block = blocks.log_sums[temperature].T.contiguous()  # [T, n]
    log_total = log_block.logsumexp(1, keepdim=True)  # [T, 1]
    best = likeliest.rank.flatten(1).amax(1)[:, None, None]  # [T, 1, 1]

    def split(opened: OpenedBlocks) -> tuple[Tensor, Tensor, Tensor]:
        """Return log p, whether the token is kept for certain, and p of the other tokens, each [T, c, BLOCK]."""
        logprob = opened.logits / temperature - log_total[..., None]
        is_certain = (logprob >= -math.log(k)) | (opened.rank == best)
        return logprob, is_certain, logprob.masked_fill(is_certain, -torch.inf).double().exp()

    _, is_certain, light = split(likeliest)
    certain = is_certain.sum((1, 2))[:, None]  # [T, 1]
    mass = (log_block - log_total).double().exp().scatter(1, likeliest.number, light.sum(2))  # [T, n] of the others
    total = mass.sum(1, keepdim=True)
    spacing = (total / (k - certain).clamp(min=1)).clamp(min=1 / k)
    # between two whole numbers, but where the best is below τ: there whole, which a quotient may miss by its last bit
    draws = torch.where(spacing > 1 / k, k - certain, torch.minimum(total / spacing, k - certain))
    steps = _systematic_steps(mass, draws, start)  # [T, n]
    keeps = torch.diff(steps.floor(), dim=1, prepend=torch.zeros_like(start)) > 0
    keeps |= torch.zeros_like(keeps).scatter(1, likeliest.number, is_certain.any(2))  # at most k blocks
    opened = blocks.open(keeps.byte().topk(min(k, keeps.shape[1]), dim=1).indices)

    logprob, is_certain, light = split(opened)
    ends = torch.cat([start, steps], dim=1)  # [T, n + 1]
    taken = _taken_within(light, ends.gather(1, opened.number), ends.gather(1, opened.number + 1))
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


def _systematic_steps(mass: Tensor, draws: Tensor, start: Tensor) -> Tensor:
    """Return [T, n]: the running sum of `mass` [T, n], scaled and shifted to go from `start` to `draws` + `start`
    [T, 1].

    A draw falls wherever it passes a whole number. The last step is exactly `draws` + `start`.
    """
    running = mass.cumsum(1)
    share = running / running[:, -1:].clamp(min=torch.finfo(mass.dtype).tiny)
    return torch.where(running == running[:, -1:], draws, share * draws) + start


def _taken_within(mass: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Return [T, c, b] bool: where draws fall inside blocks of `mass` [T, c, b], if the running sum enters a block at
    `before` and leaves it at `after` [T, c]."""
    running = mass.cumsum(2)
    share = running / running[..., -1:].clamp(min=torch.finfo(mass.dtype).tiny)
    steps = before[..., None] + share * (after - before)[..., None]
    steps = torch.where(running == running[..., -1:], after[..., None], steps)
    return torch.diff(steps.floor(), dim=2, prepend=before[..., None].floor()) > 0


@dataclass(frozen=True)
class ThresholdLogits:
    """Compute and compare the arrays of `threshold`."""

    recipe: Recipe

    def compute(self, observed: Observation, head: BlockedHead) -> dict[str, Tensor]:
        k, temperatures = self.recipe.top_k, self.recipe.temperatures
        sample = keep_threshold_sample(observed.features, head, k, temperatures, observed.offset)
        return {
            "sample_id": sample.ids.int(),
            "sample_logweight": sample.logweight.half(),
            "entropy": rounded_nats(sample.entropy),
            "entropy_seen": rounded_nats(sample.entropy_seen),
        }

    def recompute(self, stored: Arrays, features: Tensor, head: BlockedHead) -> dict[str, Tensor]:
        """Return `sample_logprob` [T, n_T, k] float32: log-probabilities of the stored ids, NaN in empty slots."""
        ids = torch.from_numpy(stored["sample_id"].astype(np.int64))  # [T, n_T, k]
        logprob = torch.empty(ids.shape)
        for portion in head.portions(len(features)):
            logits = head.plain.logits(features[portion])  # [t, V]
            for index, temperature in enumerate(self.recipe.temperatures):
                wanted = ids[portion, index].clamp(min=0).to(logits.device)  # [t, k]
                log_total = (logits / temperature).logsumexp(1, keepdim=True)
                logprob[portion, index] = (logits.gather(1, wanted) / temperature - log_total).cpu()
        return {"sample_logprob": logprob.masked_fill(ids < 0, torch.nan)}

    def compare(self, stored: Arrays, found: Arrays) -> Errors:
        """Return the errors of arrays [T, …]; `found` also holds the `sample_logprob` of `recompute`.

        `kl` is over the tokens that both runs keep for certain and the rest as one bucket, a lower bound of the true
        KL. Shares are 1 for each stored id that is not found, else 0. `drawn_logprob`: see `drawn_bias`.
        """
        k = self.recipe.top_k
        ids, again = stored["sample_id"].reshape(-1, k), found["sample_id"].reshape(-1, k)  # [T · n_T, k]
        value = stored["sample_logweight"].reshape(-1, k).astype(float)
        value_again = found["sample_logweight"].reshape(-1, k).astype(float)
        certain, certain_again = certain_slots(value, k), certain_slots(value_again, k)
        drawn = (ids >= 0) & ~certain
        kept, kept_again = np.where(certain, ids, -1), np.where(certain_again, again, -1)
        match, match_again = looked_up(kept, kept_again, value_again), looked_up(kept_again, kept, value)
        highest = np.minimum(value[:, :1], -math.log(k))  # of a token that is not certain
        highest_again = np.minimum(value_again[:, :1], -math.log(k))
        weights = both_ways(value, match, highest_again, value_again, match_again, highest)
        errors = {"sample_logweight": weights[np.concatenate([certain, certain_again])]}
        for name in ("entropy", "entropy_seen"):
            errors[name] = np.abs(stored[name].astype(float) - found[name].astype(float))
        rest = np.maximum(1 - np.where(np.isnan(match), 0.0, np.exp(value)).sum(1), HALF)
        rest_again = np.maximum(1 - np.where(np.isnan(match_again), 0.0, np.exp(value_again)).sum(1), HALF)
        errors["kl"] = bucketed_kl(value, match, rest, rest_again)
        errors["certain_id"] = np.isnan(match)[certain].astype(float)
        errors["drawn_id"] = np.isnan(looked_up(ids, again, value_again))[drawn].astype(float)
        logprob, entropy = found["sample_logprob"].reshape(-1, k), found["entropy"].reshape(-1)
        certain_logprob = np.where(certain_again, value_again, -np.inf)
        errors["drawn_logprob"] = drawn_bias(logprob, drawn, entropy, certain_logprob)
        return errors


def drawn_bias(
    logprob: NDArray, drawn: NDArray[np.bool_], entropy: NDArray, certain: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return [1]: the distance of the mean log-probability of the drawn tokens from its expectation, beyond six
    standard errors; empty if nothing is drawn.

    Which tokens are drawn depends on the last bits of many probabilities, their mean does not: a token is drawn in
    proportion to its p, so the mean over tokens that are not certain is expected at Σ p log p / Σ p, which follows from
    `entropy` [T] and the log-probabilities of the certain tokens [T, k] (−∞ in other slots). `logprob`, `drawn` [T, k].
    """
    certain_terms = (np.exp(certain) * np.where(certain > -np.inf, certain, 0.0)).sum(1)
    expected = -(entropy + certain_terms) / np.maximum(1 - np.exp(certain).sum(1), HALF)  # [T]
    deviation = (logprob - expected[:, None])[drawn].astype(float)
    if not len(deviation):
        return deviation
    error = max(deviation.std(), LEAST_DEVIATION) / math.sqrt(len(deviation))
    return np.maximum(np.abs(deviation.mean(keepdims=True)) - 6 * error, 0.0)


def certain_slots(logweight: NDArray[np.float64], k: int) -> NDArray[np.bool_]:
    """Return [T, k]: which slots hold tokens that stand for their own probability: the first, and if that is not below
    τ = 1 / k, all above τ."""
    threshold = float(np.float16(-math.log(k)))
    certain = (logweight > threshold) & (logweight[:, :1] >= threshold)
    certain[:, 0] = True
    return certain
