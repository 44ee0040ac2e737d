"""The start of a ModernBERT: norms before attention and ffn, rotary positions, a gated feed-forward, no biases.

The scale of each norm goes into the matrix that reads it, after which a rotation of the stream is exact (SliceGPT,
Ashkboos et al. 2024, https://arxiv.org/abs/2401.15024). Norms remove the mean of the stream over its channels, so what
layers write is kept without it. Rotary positions turn pairs of dimensions of a head: heads are kept whole. No bias can
take the mean of what is cut off, so second moments count, and not variances.
"""

from typing import Any

import torch
from torch import Tensor

from cache_tools.anatomy import (
    MODERN_ATTENTION_NORM,
    MODERN_DOWN,
    MODERN_EMBEDDING_NORM,
    MODERN_FFN_NORM,
    MODERN_FINAL_NORM,
    MODERN_OUTPUT,
    MODERN_QKV,
    MODERN_UP,
    Anatomy,
)
from cache_tools.components import falling, principal_basis, slopes
from cache_tools.store.recipe import Recipe
from cache_tools.teacher.model import Teacher
from cache_tools.teacher.start.activations import Activations
from cache_tools.teacher.start.frame import StartFrame, of_heads, within_heads


def make_frame(teacher: Teacher, anatomy: Anatomy, recipe: Recipe, found: Activations) -> StartFrame:
    """Return the basis, and the order of heads and neurons by the second moment of what they add to the stream."""
    heads, neurons = [], []
    for index in recipe.start_layers:
        output, down = (_writer(teacher, anatomy, index, part) for part in (MODERN_OUTPUT, MODERN_DOWN))
        matrices, moments = of_heads(output, recipe), within_heads(found.layers[index].context.second, recipe)
        heads.append(falling(torch.einsum("hod,hde,hoe->h", matrices, moments, matrices)))
        added = found.layers[index].neurons.second * down.square().sum(0)  # [F]
        neurons.append(falling(added)[: recipe.start_neurons])
    streams = [site.second for layer in found.layers for site in (layer.attention_norm, layer.ffn_norm)]
    streams.append(found.hidden.second)
    basis = principal_basis([moments / moments.trace() for moments in streams], found.features.covariance)
    return StartFrame(basis[:, : recipe.start_width], torch.stack(heads), torch.stack(neurons))


def project_layers(
    teacher: Teacher, anatomy: Anatomy, recipe: Recipe, found: Activations, frame: StartFrame
) -> dict[str, Tensor]:
    """Return the arrays of norms and layers; at the teacher's width also those of the exact embedding norm and head."""
    basis, layers = frame.basis, recipe.start_layers
    orders = list(zip(layers, frame.head_order, frame.neuron_order, strict=True))
    scale = anatomy.embeddings(teacher.model, MODERN_EMBEDDING_NORM).weight.double()
    embedded = found.embedding_norm.second
    inputs = [embedded, scale[:, None] * embedded * scale]
    inputs += [site.second for i in layers for site in (found.layers[i].attention_norm, found.layers[i].ffn_norm)]
    second_moment = torch.stack([_diagonal(moments, basis) for moments in (*inputs, found.hidden.second)]).clamp(min=0)
    arrays = {
        "attention": torch.stack([_attention(teacher, anatomy, i, heads, recipe) @ basis for i, heads, _ in orders]),
        "ffn": torch.stack([_ffn(teacher, anatomy, i, neurons) @ basis for i, _, neurons in orders]),
        "second_moment": second_moment,
        "embedding_scale": slopes(_diagonal(scale[:, None] * embedded, basis), second_moment[0]),
    }
    if recipe.start_width == recipe.teacher_hidden:
        arrays |= _exact_arrays(teacher, anatomy)
    return arrays


def _diagonal(moments: Tensor, basis: Tensor) -> Tensor:
    """Return the diagonal [w] of moments [H, H] in a basis [H, w]."""
    return ((moments @ basis) * basis).sum(0)


def _reader(teacher: Teacher, anatomy: Anatomy, index: int, part: str, norm: str) -> Tensor:
    """Return a matrix [out, H] that reads the stream, with the scale of the norm before it."""
    weight = anatomy.layer(teacher.model, index, part).weight.double()
    scale = getattr(anatomy.layer(teacher.model, index, norm), "weight", None)  # the first layer has no attention norm
    return weight if scale is None else weight * scale


def _writer(teacher: Teacher, anatomy: Anatomy, index: int, part: str) -> Tensor:
    """Return a matrix [H, in] that adds to the stream, without the mean over channels, which all norms remove."""
    weight: Tensor = anatomy.layer(teacher.model, index, part).weight.double()
    return weight - weight.mean(0)


def _attention(teacher: Teacher, anatomy: Anatomy, index: int, order: Tensor, recipe: Recipe) -> Tensor:
    """Return a layer's queries, keys, values and outputs [4, rows, H], head after head: a leading block holds whole
    heads."""
    inputs = _reader(teacher, anatomy, index, MODERN_QKV, MODERN_ATTENTION_NORM)  # [3 H, H]
    outputs = _writer(teacher, anatomy, index, MODERN_OUTPUT).T  # [H, H]
    matrices = torch.cat([inputs, outputs]).unflatten(0, (4, recipe.teacher_heads, -1))
    return matrices[:, order].flatten(1, 2)[:, : recipe.start_width]


def _ffn(teacher: Teacher, anatomy: Anatomy, index: int, order: Tensor) -> Tensor:
    """Return of each neuron [3, f, H] what it reads, what its gate reads, and what it writes."""
    up = _reader(teacher, anatomy, index, MODERN_UP, MODERN_FFN_NORM)  # [2 F, H]
    down = _writer(teacher, anatomy, index, MODERN_DOWN).T  # [F, H]
    return torch.cat([up, down]).unflatten(0, (3, -1))[:, order]


def _exact_arrays(teacher: Teacher, anatomy: Anatomy) -> dict[str, Tensor]:
    """Return what a student of the teacher's own width has in place of the fits: the scales of the norms of embeddings
    and head, and the head's dense layer, with the final norm's scale in it and its bias as the last row."""
    first, final = (anatomy.embeddings(teacher.model, part) for part in (MODERN_EMBEDDING_NORM, MODERN_FINAL_NORM))
    head: Any = (teacher.model.get_submodule(name) for name in (anatomy.head_dense, anatomy.head_norm))
    dense, last = head
    bias = torch.zeros_like(final.weight) if dense.bias is None else dense.bias
    return {
        "norm_weight": torch.stack([first.weight, last.weight]),
        "head_dense": torch.cat([dense.weight * final.weight, bias[None]]),
    }
