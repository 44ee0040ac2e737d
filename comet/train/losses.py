"""The losses, as pure functions on tensors. All return nats (or squared map entries) for each target or row.

T targets, k kept tokens, B rows, m blocks. Teacher: `logprob` [T, k] at temperature 1, −∞ for slots to leave out;
`tail` [T], the log mass Σ exp(logprob / temperature) of all other tokens. Student: `kept` [T, k] logits of the same
tokens; `rest` [T], log Σ exp(logit / temperature) over all other tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


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


def used_blocks(length: Tensor, size: int) -> Tensor:
    """Return which blocks of a pooled map hold tokens, [B, m] bool."""
    return torch.arange(size, device=length.device) < length[:, None]


def attention_kl(teacher: Tensor, student: Tensor, length: Tensor) -> Tensor:
    """Return the KL [B] between rows of pooled maps [B, layers, m, m], mean over layers and query blocks in use."""
    used = used_blocks(length, teacher.shape[-1])[:, None, :]  # [B, 1, m]
    tiny = torch.finfo(student.dtype).tiny
    difference = teacher.clamp(min=tiny).log() - student.clamp(min=tiny).log()
    rows = _weighted(teacher, difference).sum(-1)  # [B, layers, m]
    return (rows * used).sum((1, 2)) / (used.sum((1, 2)) * teacher.shape[1])


def attention_mse(teacher: Tensor, student: Tensor, length: Tensor) -> Tensor:
    """Return the squared difference [B] of pooled maps [B, layers, m, m], summed over key blocks, mean over layers and
    query blocks in use (a row of a map sums to 1, so this does not shrink with m)."""
    used = used_blocks(length, teacher.shape[-1])[:, None, :]  # [B, 1, m]
    rows = (teacher - student).square().sum(-1)  # [B, layers, m]
    return (rows * used).sum((1, 2)) / (used.sum((1, 2)) * teacher.shape[1])


def attention_projection(teacher: Tensor, projected: Tensor, length: Tensor) -> Tensor:
    """Return ‖W · a_student − a_teacher‖² [B] of pooled maps [B, layers, m, m], summed over a map, mean over layers.

    Blocks that a row of `length` [B] tokens does not use are padding and count for nothing. `projected` are the
    student's maps after `project`. The attention loss of AfroXLMR-Comet
    (https://arxiv.org/abs/2502.18020) on pooled instead of full maps.
    """
    used = used_blocks(length, teacher.shape[-1])  # [B, m]
    both = (used[:, :, None] * used[:, None, :])[:, None]  # [B, 1, m, m]
    return ((projected - teacher) * both).flatten(2).square().sum(-1).mean(1)


def project(maps: Tensor, projection: Tensor) -> Tensor:
    """Multiply maps [B, layers, m, m], flattened to m², by a learned matrix W [m², m²]."""
    return (maps.flatten(2) @ projection.T).view_as(maps)


@dataclass(frozen=True)
class AttentionLoss:
    """Distance [B] of a student's pooled maps [B, layers, m, m] to the teacher's, given `length` [B]. With `projects`
    the student's maps go through a learned projection first."""

    distance: Callable[[Tensor, Tensor, Tensor], Tensor]
    projects: bool = False


ATTENTION_LOSSES = {
    "kl": AttentionLoss(attention_kl),
    "mse": AttentionLoss(attention_mse),
    "projection": AttentionLoss(attention_projection, projects=True),
}
"""By their names in an objective."""
