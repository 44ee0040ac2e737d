"""Principal components of embeddings and of the residual stream, and the effect of norms on the latter.

Used for the vocabulary of a cache, and for the start of one text or several.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

FEATURE_WEIGHT = 0.3  # of the head's features among the residual streams, when directions are weighed
FAINT = 1e-5  # of the mean variance: what a direction of less does is lost in the rounding of float32


def principal_basis(streams: Sequence[Tensor], features: Tensor, apart: Sequence[int] = ()) -> Tensor:
    """Return [H, H]: directions by falling variance over residual streams and head features, given covariances [H, H].

    The embeddings serve both ends, so the basis must hold what the head's features need. Channels that are set `apart`
    are directions of their own. Each direction's largest entry is made positive, so that the result does not depend on
    the eigensolver's choice of sign.
    """
    total = torch.stack(list(streams)).sum(0)
    together = total / total.trace() + FEATURE_WEIGHT * features / features.trace()
    rest = torch.tensor([channel for channel in range(len(total)) if channel not in apart])
    basis = torch.zeros_like(total)
    basis[list(apart), range(len(apart))] = 1.0
    basis[rest, len(apart) :] = torch.linalg.eigh(together[rest][:, rest]).eigenvectors
    return with_signs(basis[:, falling(((together @ basis) * basis).sum(0))])


def principal_components(embedding: Tensor, count: Tensor, width: int) -> Tensor:
    """Return [V, width] float16: rows of `embedding` [V, H], centred, in their leading principal directions.

    Mean and covariance weigh each row by its `count` [V]. Signs are fixed as in `principal_basis`.
    """
    rows = embedding.double()
    weight = count.double() / count.sum()
    centred = rows - weight @ rows
    covariance = centred.T @ (weight[:, None] * centred)  # [H, H]
    directions = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :width]  # [H, width], leading first
    return (centred @ with_signs(directions)).half()


def slopes(together: Tensor, variance: Tensor) -> Tensor:
    """Return the slope [w] of outputs by inputs in each direction, from their covariances and the inputs' variances:
    of directions without variance the common slope of all."""
    common = together.sum() / variance.sum()
    return torch.where(variance > FAINT * variance.mean(), together / variance, common)


def falling(values: Tensor) -> Tensor:
    """Return the order [n] of values [n], the largest first, equal ones as they stand."""
    return values.argsort(descending=True, stable=True)


def with_signs(columns: Tensor) -> Tensor:
    """Return columns [n, m] with the largest entry of each made positive."""
    return columns * signs_of(columns)


def signs_of(columns: Tensor) -> Tensor:
    """Return the sign [m] of the largest entry of each column [n, m]."""
    return columns.gather(0, columns.abs().argmax(0, keepdim=True))[0].sign()
