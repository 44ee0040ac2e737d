"""The losses, as pure functions on tensors. All return nats (or squared attention) for each target or row.

T targets, k kept tokens or keys, B rows of L tokens, S queries, m blocks of a pooled map. Teacher: `logprob` [T, k] at
temperature 1, −∞ for slots to leave out; `tail` [T], the log mass Σ exp(logprob / temperature) of all other tokens.
Student: `kept` [T, k] logits of the same tokens; `rest` [T], log Σ exp(logit / temperature) over all other tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SampledRows:
    """The teacher's attention in B rows of `length` [B] tokens: of S queries in each layer a sample of k keys.

    `key` [B, layers, S, k] int64; `weight` [B, layers, S, k], 0 in unused slots and in all of an unused query, the last
    ones of a row, else of sum 1.
    """

    key: Tensor
    weight: Tensor
    length: Tensor

    def rows(self, seq_len: int) -> Tensor:
        """Return whole rows [B, layers, S, L]: each kept key's weight, and 0 for the others."""
        return self.weight.new_zeros(*self.weight.shape[:3], seq_len).scatter_add(3, self.key, self.weight)

    def used_blocks(self, size: int) -> tuple[Tensor, Tensor]:
        """Return which blocks of queries and of keys of a pooled map are in use, [B, m] bool each."""
        block = torch.arange(size, device=self.length.device)
        return block < self._queries[:, None], block < self.length[:, None]

    def pooled(self, rows: Tensor, size: int) -> Tensor:
        """Pool rows [B, layers, S, L] to maps [B, layers, m, m]: mean over the queries of a block, sum over its keys.

        The blocks divide the n queries, and the keys, of a row evenly: the i-th lies in block ⌊i · min(n, m) / n⌋. With
        n < m some blocks are not in use, and zero.
        """
        queries = _block_members(self._queries, rows.shape[2], size).to(rows.dtype)  # [B, S, m]
        keys = _block_members(self.length, rows.shape[3], size).to(rows.dtype)  # [B, L, m]
        means = (queries / queries.sum(1, keepdim=True).clamp(min=1)).transpose(1, 2)[:, None]  # [B, 1, m, S]
        return means @ rows @ keys[:, None]

    @property
    def _queries(self) -> Tensor:
        """[B] queries of each row."""
        return (self.weight[:, 0].sum(-1) > 0).sum(-1)


def _block_members(count: Tensor, size: int, blocks: int) -> Tensor:
    """Return [B, size, m] bool: whether one of the first `count` [B] places lies in a block."""
    place = torch.arange(size, device=count.device)
    block = place * count.clamp(max=blocks)[:, None] // count.clamp(min=1)[:, None]  # [B, size]
    member = block[:, :, None] == torch.arange(blocks, device=count.device)
    return member & (place < count[:, None])[:, :, None]


def teacher_log_normaliser(logprob: Tensor, tail: Tensor, temperature: float) -> Tensor:
    """Return log Σ exp(logprob / temperature) [T] over the whole vocabulary: kept tokens and tail."""
    return torch.logaddexp((logprob / temperature).logsumexp(1), tail)


def _student_logprobs(kept: Tensor, rest: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return log-probabilities ([T, k], [T]) of the kept tokens and of the rest as one event, at a temperature."""
    total = torch.logaddexp((kept / temperature).logsumexp(1), rest)
    return kept / temperature - total[:, None], rest - total


def _weighted(weight: Tensor, difference: Tensor) -> Tensor:
    """Return weight · difference; a weight of 0 cancels an infinite or undefined difference, and its gradient."""
    used = weight > 0
    return torch.where(used, weight * torch.where(used, difference, 0.0), 0.0)


def bucketed_kl(logprob: Tensor, tail: Tensor, kept: Tensor, rest: Tensor, temperature: float) -> Tensor:
    """Return KL(teacher ‖ student) [T] at a temperature over the k kept tokens and all others as one bucket.

    A lower bound of the KL over the vocabulary (data processing inequality); equal to it at k = V.
    Hinton et al. 2015 (https://arxiv.org/abs/1503.02531) for the temperature; multiply by temperature² to keep the
    gradient's scale.
    """
    normaliser = teacher_log_normaliser(logprob, tail, temperature)
    teacher_kept = logprob / temperature - normaliser[:, None]
    teacher_tail = tail - normaliser
    student_kept, student_rest = _student_logprobs(kept, rest, temperature)
    over_kept = _weighted(teacher_kept.exp(), teacher_kept - student_kept).sum(1)
    return over_kept + _weighted(teacher_tail.exp(), teacher_tail - student_rest)


def residual_kl(
    logprob: Tensor, tail: Tensor, is_label: Tensor, kept: Tensor, rest: Tensor, label: Tensor, temperature: float
) -> Tensor:
    """Return KL(target ‖ student) [T] at a temperature; the target is the teacher with the tail added to the label.

    `is_label` [T, k] bool marks the label where it was kept, `label` [T] are its logits. A simple, biased remedy for a
    missing tail, a baseline of Anshumann et al. 2025 (https://arxiv.org/abs/2503.16870).
    """
    normaliser = teacher_log_normaliser(logprob, tail, temperature)
    teacher_kept = logprob / temperature - normaliser[:, None]
    label_kept = teacher_kept.masked_fill(~is_label, -torch.inf).logsumexp(1)
    target_label = torch.logaddexp(label_kept, tail - normaliser)  # log (its own mass + the tail's)
    student_kept, _ = _student_logprobs(kept, rest, temperature)
    total = torch.logaddexp((kept / temperature).logsumexp(1), rest)
    others = _weighted(teacher_kept.exp().masked_fill(is_label, 0.0), teacher_kept - student_kept).sum(1)
    return others + _weighted(target_label.exp(), target_label - (label / temperature - total))


def sampled_kl(logweight: Tensor, entropy: Tensor, kept: Tensor, rest: Tensor, temperature: float) -> Tensor:
    """Estimate KL(teacher ‖ student) [T] at a temperature, without bias, from a threshold sample drawn at it.

    Σ w (−log q) − H, where a kept token has the weight w = exp(`logweight`) [T, k], −∞ for slots to leave out (Horvitz
    and Thompson 1952), and H = `entropy` [T] is the teacher's over the whole vocabulary. Among some tokens of mass P,
    with H = −Σ p log(p / P) over them, it is P times the KL of both conditioned on these.
    """
    student_kept, _ = _student_logprobs(kept, rest, temperature)
    return _weighted(logweight.exp(), -student_kept).sum(1) - entropy


def hard_cross_entropy(label: Tensor, kept: Tensor, rest: Tensor) -> Tensor:
    """Return −log p_student(label) [T] at temperature 1; `label` [T] are its logits, `rest` is at temperature 1."""
    return torch.logaddexp(kept.logsumexp(1), rest) - label


def _mean_over_queries(of_query: Tensor, weight: Tensor) -> Tensor:
    """Return the mean [B] of values [B, layers, S] over layers and the queries in use, which `weight` [B, layers, S, k]
    is of."""
    is_used = weight.sum(-1) > 0  # [B, layers, S]
    return (of_query * is_used).sum((1, 2)) / is_used.sum((1, 2)).clamp(min=1)


def attention_cross_entropy(attention: SampledRows, student: Tensor) -> Tensor:
    """Estimate −Σ p log q [B] of rows of attention, without bias, mean over layers and queries: the KL to the teacher's
    rows and their entropy, which no student changes. `student` [B, layers, S, L]."""
    kept = student.gather(3, attention.key).clamp(min=torch.finfo(student.dtype).tiny)  # [B, layers, S, k]
    return _mean_over_queries(_weighted(attention.weight, -kept.log()).sum(3), attention.weight)


def attention_mse(attention: SampledRows, student: Tensor) -> Tensor:
    """Return the squared difference [B] of rows of attention, summed over keys, mean over layers and queries: its
    gradient has no bias, its value is greater by the variance of the sample. `student` [B, layers, S, L]."""
    difference = student - attention.rows(student.shape[3])
    return _mean_over_queries(difference.square().sum(3), attention.weight)


def attention_projection(attention: SampledRows, student: Tensor, projection: Tensor) -> Tensor:
    """Return ‖W · a_student − a_teacher‖² [B] of pooled maps, summed over a map, mean over layers.

    `projection` W [m², m²] is learned and multiplies flattened maps of the student. Blocks that a row does not use are
    padding and count for nothing. The attention loss of AfroXLMR-Comet (https://arxiv.org/abs/2502.18020), of pooled
    instead of full maps. `student` [B, layers, S, L].
    """
    size = math.isqrt(len(projection))
    teacher, mine = (attention.pooled(rows, size) for rows in (attention.rows(student.shape[3]), student))
    projected = (mine.flatten(2) @ projection.T).view_as(mine)
    queries, keys = attention.used_blocks(size)  # [B, m] each
    both = (queries[:, :, None] * keys[:, None, :])[:, None]  # [B, 1, m, m]
    return ((projected - teacher) * both).flatten(2).square().sum(-1).mean(1)


@dataclass(frozen=True)
class AttentionLoss:
    """Distance [B] of rows of attention to the teacher's. With `projects` it also takes a learned projection."""

    distance: Callable[..., Tensor]
    projects: bool = False


ATTENTION_LOSSES = {
    "cross_entropy": AttentionLoss(attention_cross_entropy),
    "mse": AttentionLoss(attention_mse),
    "projection": AttentionLoss(attention_projection, projects=True),
}
"""By their names in an objective."""
