"""The ways to keep a teacher's logits that fidelity.py compares: what each stores, and the loss that it gives.

T targets, V tokens. A way gets a Portion and how many tokens it may keep, and returns a Kept.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools.teacher.head import BlockedHead, rounded_nats
from cache_tools.teacher.threshold import keep_threshold_sample
from cache_tools.teacher.topk import TopLogits, keep_topk
from comet.train.losses import bucketed_kl, residual_kl, sampled_kl


@dataclass(frozen=True)
class Portion:
    """Some targets: what the teacher says of them, and the student's logits."""

    features: Tensor  # [T, H] of the teacher
    head: BlockedHead
    logprob: Tensor  # [T, V] of the teacher at temperature 1
    logits: Tensor  # [T, V] of the student, a leaf that asks for its gradient
    truth: Tensor  # [T]
    generator: torch.Generator

    @property
    def offset(self) -> Tensor:
        """[T] where a systematic sample starts."""
        draws = torch.randint(2**32, (len(self.truth),), generator=self.generator, dtype=torch.int64)
        return draws.double() / 2**32


@dataclass(frozen=True)
class Kept:
    """The loss of each target [T] that is asked for, the best token that the kept signal knows and how probable it
    calls it [T], and the arrays that a cache would store."""

    loss: Tensor
    best: Tensor
    confidence: Tensor
    arrays: dict[str, NDArray]


Way = Callable[[Portion, int, float], Kept]


def stored(kept: TopLogits) -> TopLogits:
    """As it comes back from a cache, where log-probabilities are float16."""
    return TopLogits(kept.ids, kept.logprob.half().float(), rounded_nats(kept.tail_logmass), kept.tail_logmass_seen)


def arrays_of(kept: TopLogits, *names: str) -> dict[str, NDArray]:
    found = {
        "topk_id": kept.ids.int().numpy(),
        "topk_logprob": kept.logprob.half().numpy(),
        "tail_logmass": kept.tail_logmass.numpy(),
    }
    return {name: array for name, array in found.items() if name in names}


def of_student(portion: Portion, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """(kept [T, k], rest [T], truth [T]) of the student's logits, as its head gives them."""
    rest = (portion.logits.scatter(1, ids, -torch.inf) / temperature).logsumexp(1)
    return portion.logits.gather(1, ids), rest, portion.logits.gather(1, portion.truth[:, None])[:, 0]


def weighted_loss(portion: Portion, weights: Tensor, temperature: float) -> Tensor:
    """[T] Σ weight · (log p − log q) over the vocabulary, for weights [T, V] that stand for p at this temperature."""
    p = (portion.logprob / temperature).log_softmax(1)
    q = (portion.logits / temperature).log_softmax(1)
    return temperature**2 * torch.where(weights > 0, weights * (p - q), 0.0).sum(1)


def full(portion: Portion, k: int, temperature: float) -> Kept:
    weights = (portion.logprob / temperature).softmax(1)
    confidence, best = portion.logprob.exp().max(1)
    return Kept(weighted_loss(portion, weights, temperature), best, confidence, {})


def topk_of(portion: Portion, k: int, temperature: float) -> TopLogits:
    return stored(keep_topk(portion.features, portion.head, k, (temperature,)))


def topk_renormalised(portion: Portion, k: int, temperature: float) -> Kept:
    kept = topk_of(portion, k, temperature)
    p = (kept.logprob / temperature).log_softmax(1)
    q = (portion.logits / temperature).log_softmax(1).gather(1, kept.ids)
    loss = temperature**2 * (p.exp() * (p - q)).sum(1)
    return Kept(loss, kept.ids[:, 0], kept.logprob.softmax(1)[:, 0], arrays_of(kept, "topk_id", "topk_logprob"))


def topk_and_tail(portion: Portion, k: int, temperature: float) -> Kept:
    kept = topk_of(portion, k, temperature)
    logits, rest, _ = of_student(portion, kept.ids, temperature)
    loss = temperature**2 * bucketed_kl(kept.logprob, kept.tail_logmass[:, 0], logits, rest, temperature)
    arrays = arrays_of(kept, "topk_id", "topk_logprob", "tail_logmass")
    return Kept(loss, kept.ids[:, 0], kept.logprob[:, 0].exp(), arrays)


def residual_to_truth(portion: Portion, k: int, temperature: float) -> Kept:
    kept = topk_of(portion, k, temperature)
    logits, rest, truth = of_student(portion, kept.ids, temperature)
    is_truth = kept.ids == portion.truth[:, None]
    tail = kept.tail_logmass[:, 0]
    loss = temperature**2 * residual_kl(kept.logprob, tail, is_truth, logits, rest, truth, temperature)
    target = torch.where(is_truth, kept.logprob.exp() + tail.exp()[:, None], kept.logprob.exp())
    confidence, slot = target.max(1)
    truth_alone = (tail.exp() > confidence) & ~is_truth.any(1)
    best = torch.where(truth_alone, portion.truth, kept.ids.gather(1, slot[:, None])[:, 0])
    arrays = arrays_of(kept, "topk_id", "topk_logprob", "tail_logmass")
    return Kept(loss, best, torch.where(truth_alone, tail.exp(), confidence), arrays)


def counted(portion: Portion, counts: Tensor, temperature: float) -> Kept:
    """A sample by how often each token was drawn, [T, V]; its ids in rising order and the counts are stored, as many
    slots as any target needs."""
    share = counts / counts.sum(1, keepdim=True)
    confidence, best = share.max(1)
    ids, slots = in_slots(counts > 0)
    arrays = {"id": ids.int().numpy(), "count": counts.gather(1, slots).where(ids >= 0, 0.0).to(torch.uint8).numpy()}
    return Kept(weighted_loss(portion, share, temperature), best, confidence, arrays)


def in_slots(taken: Tensor) -> tuple[Tensor, Tensor]:
    """([T, k], [T, k]) the ids that are taken [T, V] by rising id, −1 after them; and the same with some id there."""
    k = int(taken.sum(1).max())
    key = torch.where(taken, torch.arange(taken.shape[1], 0, -1), 0)
    chosen = key.topk(k, dim=1)
    return chosen.indices.where(chosen.values > 0, -1), chosen.indices


def random_sampling(portion: Portion, k: int, temperature: float) -> Kept:
    """k draws with replacement from the distribution at the temperature: Sparse Logit Sampling, Anshumann et al. 2025
    (https://arxiv.org/abs/2503.16870)."""
    p = (portion.logprob / temperature).softmax(1)
    draws = torch.multinomial(p, k, replacement=True, generator=portion.generator)
    counts = torch.zeros_like(portion.logprob).scatter_add_(1, draws, torch.ones(draws.shape))
    return counted(portion, counts, temperature)


def systematic_counts(portion: Portion, k: int, temperature: float) -> Kept:
    """k draws with replacement, evenly spaced along the distribution's running sum: random sampling with less noise."""
    running = (portion.logprob / temperature).double().softmax(1).cumsum(1)
    steps = (running / running[:, -1:] * k + portion.offset[:, None]).floor()
    counts = torch.diff(steps, dim=1, prepend=torch.zeros_like(steps[:, :1]))
    return counted(portion, counts.float(), temperature)


def half_and_half(portion: Portion, k: int, temperature: float) -> Kept:
    """The k / 2 best exactly, and k / 2 draws with replacement from the others, which stand for the tail."""
    best = topk_of(portion, k // 2, temperature)
    others = portion.logprob.exp().scatter(1, best.ids, 0.0)
    draws = torch.multinomial(others, k - k // 2, replacement=True, generator=portion.generator)
    p = (portion.logprob / temperature).softmax(1)
    weights = torch.zeros_like(p).scatter(1, best.ids, p.gather(1, best.ids))
    share = (p / portion.logprob.exp()).gather(1, draws) * others.sum(1, keepdim=True) / draws.shape[1]
    weights.scatter_add_(1, draws, share)
    confidence, index = weights.max(1)
    ids = torch.cat([best.ids, draws.sort(1).values], 1)
    arrays = arrays_of(best, "topk_logprob", "tail_logmass") | {"topk_id": ids.int().numpy()}
    return Kept(weighted_loss(portion, weights, temperature), index, confidence, arrays)


def threshold_sample(portion: Portion, k: int, temperature: float) -> Kept:
    """What a cache stores with `--keep threshold --top-k k`."""
    sample = keep_threshold_sample(portion.features, portion.head, k, (temperature,), portion.offset)
    ids, logweight, entropy = sample.ids[:, 0], sample.logweight[:, 0].half(), rounded_nats(sample.entropy)
    padded = torch.cat([portion.logits, portion.logits.new_full((len(ids), 1), -torch.inf)], 1)
    at = ids.where(ids >= 0, portion.logits.shape[1])
    rest = (padded.scatter(1, at, -torch.inf) / temperature).logsumexp(1)
    loss = temperature**2 * sampled_kl(logweight.float(), entropy[:, 0], padded.gather(1, at), rest, temperature)
    arrays = {"sample_id": ids.int().numpy(), "sample_logweight": logweight.numpy(), "entropy": entropy.numpy()}
    return Kept(loss, ids[:, 0], logweight[:, 0].float().exp(), arrays)


def threshold_in_order(order: Tensor) -> Way:
    """The threshold sample with the vocabulary in another order [V], such that a draw's neighbours resemble it."""

    def way(portion: Portion, k: int, temperature: float) -> Kept:
        p = (portion.logprob / temperature).double().softmax(1)
        certain = p >= 1 / k
        light = p.masked_fill(certain, 0.0)[:, order]
        steps = (light.cumsum(1) * k + portion.offset[:, None]).floor()
        drawn = torch.diff(steps, dim=1, prepend=torch.zeros_like(steps[:, :1])) > 0
        taken = certain | torch.zeros_like(certain).scatter(1, order.expand_as(drawn), drawn)
        weights = torch.where(taken, p.clamp(min=1 / k), 0.0).float()
        confidence, best = weights.max(1)
        ids, slots = in_slots(taken)
        logweight = weights.gather(1, slots).log().where(ids >= 0, -torch.inf)
        arrays = {"sample_id": ids.int().numpy(), "sample_logweight": logweight.half().numpy()}
        return Kept(weighted_loss(portion, weights, temperature), best, confidence, arrays)

    return way


def in_rounds(way: Way, rounds: int) -> Way:
    """As many independent samples as rounds, each of k / rounds tokens: a further one for each epoch."""

    def together(portion: Portion, k: int, temperature: float) -> Kept:
        parts = [way(portion, k // rounds, temperature) for _ in range(rounds)]
        arrays = {name: np.stack([part.arrays[name] for part in parts], 1) for name in parts[0].arrays}
        loss = torch.stack([part.loss for part in parts]).mean(0)
        return Kept(loss, parts[0].best, parts[0].confidence, arrays)

    return together


def similarity_order(embedding: Tensor, depth: int = 10) -> Tensor:
    """[V] tokens in an order where neighbours have similar embeddings [V, H]: halved again and again along the largest
    principal component of what is left."""

    def halve(ids: Tensor, depth: int) -> list[Tensor]:
        if depth == 0 or len(ids) < 4:
            return [ids]
        part = embedding[ids] - embedding[ids].mean(0)
        direction = torch.linalg.eigh(part.T @ part).eigenvectors[:, -1]
        ids = ids[(part @ direction).argsort()]
        middle = len(ids) // 2
        return [*halve(ids[:middle], depth - 1), *halve(ids[middle:], depth - 1)]

    return torch.cat(halve(torch.arange(len(embedding)), depth))
