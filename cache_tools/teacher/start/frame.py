"""Parts common to the starts of all teachers: the frame of the arrays, the embeddings, and the moments of the head."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools.store.recipe import Recipe
from cache_tools.teacher.model import Teacher
from cache_tools.teacher.start.activations import Activations

RIDGE = 1e-3  # of the mean variance, added in the head's fit


@dataclass(frozen=True)
class StartFrame:
    """What the arrays of a start are in: the basis [H, w], and of each kept layer the order of its heads [n, heads] and
    of the neurons kept [n, f]."""

    basis: Tensor
    head_order: Tensor
    neuron_order: Tensor


def of_heads(output: Tensor, recipe: Recipe) -> Tensor:
    """Return the output's weight [H, H] as [heads, H, dh]."""
    return output.unflatten(1, (recipe.teacher_heads, -1)).transpose(0, 1)


def within_heads(moments: Tensor, recipe: Recipe) -> Tensor:
    """Return the blocks [heads, dh, dh] of moments [H, H] of all heads' outputs, head by head."""
    heads = recipe.teacher_heads
    blocks = moments.unflatten(1, (heads, -1)).unflatten(0, (heads, -1))  # [heads, dh, heads, dh]
    return torch.stack([blocks[head, :, head] for head in range(heads)])


def project_embeddings(
    teacher: Teacher, recipe: Recipe, found: Activations, ids: NDArray, basis: Tensor
) -> dict[str, Tensor]:
    """Return `embedding` and `head_bias`. Their rows are the tokens of the corpus, the special tokens, and
    one for the mean of all others."""
    embedding, bias = teacher.input_embedding, teacher.head.bias.double()
    shift = (embedding @ found.features.mean.float()).double()  # [V] of the logits, by the mean feature
    kept = torch.cat([torch.from_numpy(ids.astype(np.int64)), torch.tensor(recipe.special_ids)])
    others = torch.ones(len(embedding), dtype=torch.bool)
    others[kept] = False
    number = max(int(others.sum()), 1)

    def with_others(logits: Tensor) -> Tensor:  # their mean mass, so that all together keep theirs
        mass = logits.masked_fill(~others, -torch.inf).logsumexp(0, keepdim=True) - math.log(number)
        return torch.cat([logits[kept], mass if others.any() else logits.new_zeros(1)])

    mean = (others.double() @ embedding.double() if others.any() else torch.zeros(len(basis)).double()) / number
    return {
        "embedding": torch.cat([embedding[kept].double(), mean[None]]) @ basis,
        "head_bias": torch.stack([with_others(bias), with_others(bias + shift)]),
    }


def head_moments(teacher: Teacher, found: Activations, ids: NDArray, count: NDArray, basis: Tensor) -> Tensor:
    """Return [3, w, w] of which leading blocks give the head of every width; see `comet.student.start`.

    The metric of logits, Σ p (e − ē)(e − ē)ᵀ over the tokens of the corpus by frequency p, in the basis; its product
    with the covariance of features by hidden; and the covariance of hidden.
    """
    embedding = teacher.input_embedding[torch.from_numpy(ids.astype(np.int64))].double()
    share = torch.from_numpy(count / count.sum())
    centred = embedding - share @ embedding
    metric = basis.T @ (centred.T @ (share[:, None] * centred))  # [w, H]
    hidden = basis.T @ found.hidden.covariance @ basis
    ridge = RIDGE * hidden.trace() / len(hidden) * torch.eye(len(hidden), dtype=hidden.dtype)
    return torch.stack([metric @ basis, metric @ found.cross_covariance @ basis, hidden + ridge])
