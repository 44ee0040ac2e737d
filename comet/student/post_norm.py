"""A student of XLM-R's or BERT's kind from a leading block of its teacher's layers: its weights by name.

See `cache_tools.teacher.start.post_norm`. The student has a leading block of every head, and norms whose scale and bias
make up for the components that it lacks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cache_tools.anatomy import (
    ATTENTION_NORM,
    DOWN,
    EMBEDDING_NORM,
    FFN_NORM,
    KEY,
    OUTPUT,
    QUERY,
    UP,
    VALUE,
    Anatomy,
)
from cache_tools.store.recipe import Recipe
from comet.student.family import Read, StudentShape


def body_weights(
    read: Read, recipe: Recipe, anatomy: Anatomy, chosen: Sequence[int], shape: StudentShape, turn: Tensor
) -> dict[str, Tensor]:
    """Return the weights of all norms and layers by name, but for the head's and those of positions.

    `chosen` are the kept layers that it has; `turn` [components, channels] leads from the components to its channels.
    """
    layers = [f"{anatomy.layers}.{layer}" for layer in range(len(chosen))]
    norms = [EMBEDDING_NORM, *(f"{name}.{part}" for name in layers for part in (ATTENTION_NORM, FFN_NORM))]
    sites = [0, *(1 + 2 * index + site for index in chosen for site in (0, 1))]
    if shape.hidden == recipe.teacher_hidden:
        fitted = list(read("norm_weight")[sites])  # of scale and bias [2, H]
    else:
        fitted = [fit_norm(vectors, turn) for vectors in read("norm")[sites, :, : shape.hidden]]
    parts = dict(zip(norms, fitted, strict=True))
    for name, index in zip(layers, chosen, strict=True):
        parts |= {f"{name}.{part}": pair for part, pair in _attention(read, recipe, index, shape, turn).items()}
        parts |= {f"{name}.{part}": pair for part, pair in _ffn(read, index, shape, turn).items()}
    weights = {f"{anatomy.body}.{name}.weight": weight for name, (weight, _) in parts.items()}
    return weights | {f"{anatomy.body}.{name}.bias": bias for name, (_, bias) in parts.items()}


def fit_norm(vectors: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and bias [d] of a norm over the leading components, from its `norm` vectors [4, d] and the turn.

    The teacher divides by the deviation of all components, the student by that of its own, which is smaller by a
    factor that the second moments tell.
    """
    mean, inner, slope, second = vectors
    ratio = (second[:-1].sum() / len(second)).sqrt()
    return turn.square().T @ (slope * ratio), (mean - slope * inner) @ turn


def _attention(
    read: Read, recipe: Recipe, index: int, shape: StudentShape, turn: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return weight and bias of the four matrices of a kept layer's attention, by part."""
    matrices, of_components, of_rows = _heads(read, recipe, index, shape)
    query, key, value, output = matrices  # [d, components]
    mean, whole = of_components
    query_bias, value_bias, context = of_rows
    return {
        QUERY: (query @ turn, query_bias - query @ mean),
        KEY: (key @ turn, -key @ mean),
        VALUE: (value @ turn, value_bias - value @ mean),
        OUTPUT: ((output @ turn).T, (whole - context @ output) @ turn),
    }


def _heads(read: Read, recipe: Recipe, index: int, shape: StudentShape) -> tuple[Tensor, Tensor, Tensor]:
    """Return matrices [4, d, components] and the vectors of components [2, d] and rows [3, d] of a kept layer, rows in
    the order of the student's heads."""
    heads, size = recipe.teacher_heads, shape.hidden // shape.heads
    # in the start the first dimensions of all heads come first; in a model all dimensions of a head are together
    rows = (torch.arange(size) * heads + torch.arange(shape.heads)[:, None]).flatten()
    layer, components = slice(index, index + 1), slice(shape.hidden)
    matrices = read("attention", layer, slice(4), slice(int(rows.max()) + 1), components)[0][:, rows]
    vectors = read("attention_vector", layer)[0]  # [5, H]
    of_components, of_rows = vectors[[0, 4], components], vectors[1:4, rows]
    factor = (size * heads / recipe.teacher_hidden) ** 0.5  # scores are divided by the root of the size
    matrices[0] *= factor
    of_rows[0] *= factor
    return matrices, of_components, of_rows


def _ffn(read: Read, index: int, shape: StudentShape, turn: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return weight and bias of both matrices of a kept layer's feed-forward, by part."""
    layer, neurons, components = slice(index, index + 1), slice(shape.intermediate), slice(shape.hidden)
    up, down = read("ffn", layer, slice(2), neurons, components)[0]  # [f, d]
    bias, activation = read("ffn_vector", layer, slice(2), neurons)[0]
    mean, whole = read("ffn_output", layer, slice(2), components)[0]
    return {UP: (up @ turn, bias - up @ mean), DOWN: ((down @ turn).T, (whole - activation @ down) @ turn)}
