"""The start: the teacher's layers in one orthogonal basis, ordered so that every smaller student is a leading block.

The residual stream is rotated to its principal components, leading first. Heads and neurons of the feed-forward are
sorted by what they add to the stream, the dimensions of a head by singular value. `store.start` declares the arrays,
`comet.student.start` makes a student of them; both rest on:

- A rotated matrix cut to its leading block is nearly the least-squares fit of the whole one, because principal
  components are nearly uncorrelated. What is cut off is replaced by its mean, in the biases.
- A query and key may be multiplied by any matrix and its inverse, and so may a value and its output.
- A constant added to all keys changes no attention.

Ashkboos et al. 2024 (SliceGPT, https://arxiv.org/abs/2401.15024) rotate models with norms before the residual sum,
where this is exact; here norms come after it, so a narrower student is an approximation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools.anatomy import (
    ATTENTION_NORM,
    DOWN,
    EMBEDDING_NORM,
    FFN_NORM,
    KEY,
    OUTPUT,
    POSITIONS,
    QUERY,
    TOKEN_TYPES,
    UP,
    VALUE,
    Anatomy,
)
from cache_tools.store.recipe import Recipe
from cache_tools.store.start import start_arrays
from cache_tools.teacher.activations import Activations, LayerMoments, Moments
from cache_tools.teacher.model import Teacher

FEATURE_WEIGHT = 0.3  # of the head's features among the residual streams, when directions are weighed
RIDGE = 1e-3  # of the mean variance, added in the head's fit
SMALLEST = 1e-9


@dataclass(frozen=True)
class Norm:
    """A layer norm: scale and bias [H], and the moments of what it normalised, before both."""

    weight: Tensor
    bias: Tensor
    inner: Moments

    @property
    def mean(self) -> Tensor:
        """The mean output [H]."""
        return self.weight * self.inner.mean + self.bias

    @property
    def covariance(self) -> Tensor:
        """The covariance [H, H] of the output."""
        return self.weight[:, None] * self.inner.covariance * self.weight

    def rotated(self, basis: Tensor) -> Tensor:
        """Return [4, w] in a basis [H, w]: mean output, mean normalised input, the slope of one by the other, and the
        second moment of the normalised input."""
        mean, inner = self.mean @ basis, self.inner.mean @ basis
        second = ((self.inner.second @ basis) * basis).sum(0).clamp(min=0.0)  # 0 of equal entries
        variance = (second - inner.square()).clamp(min=SMALLEST)
        together = ((self.weight[:, None] * self.inner.covariance) @ basis * basis).sum(0)
        return torch.stack([mean, inner, together / variance, second])


@dataclass(frozen=True)
class StartFrame:
    """What the arrays of a start are in: the basis [H, w], and of each kept layer the order of its heads [n, heads] and
    of the neurons kept [n, f]."""

    basis: Tensor
    head_order: Tensor
    neuron_order: Tensor


def make_start(
    teacher: Teacher,
    anatomy: Anatomy,
    recipe: Recipe,
    found: Activations,
    ids: NDArray,
    count: NDArray,
    frame: StartFrame | None = None,
) -> dict[str, NDArray]:
    """Return the arrays of `store.start.start_arrays` for the layers and the width of the recipe.

    `ids` [V_seen] are the tokens of the corpus, `count` [V_seen] their numbers. The teacher is on the CPU in float32.
    With a `frame`, that of another start is used instead of a new one, so that both can be compared.
    """
    norms = _norms(teacher, anatomy, found)
    frame = frame or make_frame(teacher, anatomy, recipe, found, norms)
    basis = frame.basis  # [H, w]
    layers = [
        _project_attention(teacher, anatomy, index, norms[2 * index], found.layers[index], basis, recipe, heads)
        | _project_ffn(teacher, anatomy, index, norms[2 * index + 1], found.layers[index], basis, neurons)
        for index, heads, neurons in zip(recipe.start_layers, frame.head_order, frame.neuron_order, strict=True)
    ]
    kept_norms = [norms[0], *(norms[2 * index + site] for index in recipe.start_layers for site in (1, 2))]
    arrays = {
        **vars(frame),
        "norm": torch.stack([norm.rotated(basis) for norm in kept_norms]),
        **{name: torch.stack([layer[name] for layer in layers]) for name in layers[0]},
        **_project_embeddings(teacher, anatomy, recipe, found, ids, basis),
        "head": _head_moments(teacher, found, ids, count, basis),
        "head_mean": found.hidden.mean @ basis,
    }
    if recipe.start_width == recipe.teacher_hidden:
        arrays |= _exact_arrays(teacher, anatomy, kept_norms)
    dtypes = {name: spec.dtype for name, spec in start_arrays(recipe).items()}
    return {name: array.detach().numpy().astype(dtypes[name]) for name, array in arrays.items()}


def make_frame(
    teacher: Teacher, anatomy: Anatomy, recipe: Recipe, found: Activations, norms: Sequence[Norm]
) -> StartFrame:
    """Return the basis, and the order of heads and neurons by the variance of what they add to the stream."""
    heads, neurons = [], []
    for index in recipe.start_layers:
        output, down = (anatomy.layer(teacher.model, index, part).weight.double() for part in (OUTPUT, DOWN))
        added = torch.einsum("hod,hde,hoe->h", _of_heads(output, recipe), _contexts(found.layers[index], recipe),
                             _of_heads(output, recipe))  # fmt: skip
        heads.append(added.argsort(descending=True, stable=True))
        added = found.layers[index].neurons.covariance * down.square().sum(0)  # [F]
        neurons.append(added.argsort(descending=True, stable=True)[: recipe.start_neurons])
    basis = principal_basis([norm.covariance for norm in norms], found.features.covariance)
    return StartFrame(basis[:, : recipe.start_width], torch.stack(heads), torch.stack(neurons))


def _of_heads(output: Tensor, recipe: Recipe) -> Tensor:
    """Return the output's weight [H, H] as [heads, H, dh]."""
    return output.unflatten(1, (recipe.teacher_heads, -1)).transpose(0, 1)


def _contexts(found: LayerMoments, recipe: Recipe) -> Tensor:
    """Return the covariance [heads, dh, dh] of what the output is multiplied with, head by head."""
    heads = recipe.teacher_heads
    blocks = found.context.covariance.unflatten(1, (heads, -1)).unflatten(0, (heads, -1))  # [heads, dh, heads, dh]
    return torch.stack([blocks[head, :, head] for head in range(heads)])


def _norms(teacher: Teacher, anatomy: Anatomy, found: Activations) -> list[Norm]:
    """Return the norms in the order of the stream: the embeddings', then two of each layer."""
    modules = [(anatomy.embeddings(teacher.model, EMBEDDING_NORM), found.embedding_norm)]
    for index, moments in enumerate(found.layers):
        modules.append((anatomy.layer(teacher.model, index, ATTENTION_NORM), moments.attention_norm))
        modules.append((anatomy.layer(teacher.model, index, FFN_NORM), moments.ffn_norm))
    return [Norm(m.weight.detach().double(), m.bias.detach().double(), moments) for m, moments in modules]


def principal_basis(streams: Sequence[Tensor], features: Tensor) -> Tensor:
    """Return [H, H]: directions by falling variance over residual streams and head features, given covariances [H, H].

    The embeddings serve both ends, so the basis must hold what the head's features need. Each direction's largest entry
    is made positive, so that the result does not depend on the eigensolver's choice of sign.
    """
    total = torch.stack(list(streams)).sum(0)
    together = total / total.trace() + FEATURE_WEIGHT * features / features.trace()
    return _with_signs(torch.linalg.eigh(together).eigenvectors.flip(1))


def _with_signs(columns: Tensor) -> Tensor:
    """Return columns [n, m] with the largest entry of each made positive."""
    return columns * _signs(columns)


def _signs(columns: Tensor) -> Tensor:
    """Return the sign [m] of the largest entry of each column [n, m]."""
    return columns.gather(0, columns.abs().argmax(0, keepdim=True))[0].sign()


def _affine(teacher: Teacher, anatomy: Anatomy, index: int, part: str, mean: Tensor) -> Tensor:
    """Return [out, H + 1] of a linear layer whose input has this mean [H]: its weight, and its output at the mean."""
    module = anatomy.layer(teacher.model, index, part)
    weight, bias = module.weight.detach().double(), module.bias.detach().double()
    return torch.cat([weight, (weight @ mean + bias)[:, None]], 1)


def _project_attention(
    teacher: Teacher, anatomy: Anatomy, index: int, before: Norm, found: LayerMoments, basis: Tensor, recipe: Recipe,
    order: Tensor,
) -> dict[str, Tensor]:  # fmt: skip
    """Return a layer's `attention` and `attention_vector`. `before` is the norm that gives its input.

    Rows are the heads' dimensions, the first of every head before the second of any, so that a leading block holds all
    heads.
    """
    heads, rows = recipe.teacher_heads, len(basis.T)
    query, key, value, output = (
        _affine(teacher, anatomy, index, part, mean)
        for part, mean in ((QUERY, before.mean), (KEY, before.mean), (VALUE, before.mean), (OUTPUT, found.context.mean))
    )
    query, key, value = (matrix.unflatten(0, (heads, -1)) for matrix in (query, key, value))  # [heads, dh, H + 1]
    outputs, context = _of_heads(output[:, :-1], recipe), _contexts(found, recipe)
    context_mean = found.context.mean.unflatten(0, (heads, -1))
    scale = _root(before.covariance)
    aligned = []
    for head in order.tolist():
        queries, keys = align_queries(query[head], key[head, :, :-1], scale)
        to_value, out = align_values(outputs[head], context[head])
        aligned.append((queries, keys, to_value @ value[head], out.T, (to_value @ context_mean[head])[:, None]))
    queries, keys, values, out, mean = (
        torch.stack(of, 1).flatten(0, 1)[:rows] for of in zip(*aligned, strict=True)
    )  # [rows, H + 1], [rows, H], [rows, H + 1], [rows, H], [rows, 1]
    return {
        "attention": torch.stack([matrix[:, : len(basis)] @ basis for matrix in (queries, keys, values, out)]),
        "attention_vector": torch.stack(
            [before.mean @ basis, queries[:, -1], values[:, -1], mean[:, 0], output[:, -1] @ basis]
        ),
    }


def align_queries(query: Tensor, key: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return (queries [dh, H + 1], keys [dh, H]) with the same products, their dimensions by falling share of these.

    `query` [dh, H + 1] has its value at the mean input as the last column, `key` [dh, H] has none: all keys share it.
    `scale` [H, H] is a root of the input's covariance. From the singular value decomposition of the products.
    """
    ending = torch.block_diag(scale, torch.ones(1, 1, dtype=scale.dtype))
    _, left = torch.linalg.qr((query @ ending).T)
    _, right = torch.linalg.qr((key @ scale).T)  # [dh, dh]
    u, singular, v = torch.linalg.svd(left @ right.T)
    root = singular.sqrt()[:, None]
    sign = _signs(u)
    queries = root * (u * sign).T @ torch.linalg.pinv(left.T) @ query
    return queries, root * (v * sign[:, None]) @ torch.linalg.pinv(right.T) @ key


def align_values(output: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """Return (to_value [dh, dh], outputs [H, dh]): outputs @ to_value = output [H, dh], the columns orthonormal, by
    falling variance. `context` [dh, dh] is the covariance of what the output is multiplied with."""
    orthonormal, triangle = torch.linalg.qr(output)
    turn = _with_signs(torch.linalg.eigh(triangle @ context @ triangle.T).eigenvectors.flip(1))
    return turn.T @ triangle, orthonormal @ turn


def _root(covariance: Tensor) -> Tensor:
    """Return a root R of a covariance [H, H], R Rᵀ = covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=SMALLEST).sqrt()


def _project_ffn(
    teacher: Teacher, anatomy: Anatomy, index: int, before: Norm, found: LayerMoments, basis: Tensor, order: Tensor
) -> dict[str, Tensor]:
    """Return a layer's `ffn`, `ffn_vector` and `ffn_output`. `before` is the norm that gives its input."""
    up = _affine(teacher, anatomy, index, UP, before.mean)  # [F, H + 1]
    down = _affine(teacher, anatomy, index, DOWN, found.neurons.mean)  # [H, F + 1]
    return {
        "ffn": torch.stack([up[order, :-1] @ basis, down.T[order] @ basis]),
        "ffn_vector": torch.stack([up[order, -1], found.neurons.mean[order]]),
        "ffn_output": torch.stack([before.mean @ basis, down[:, -1] @ basis]),
    }


def _project_embeddings(
    teacher: Teacher, anatomy: Anatomy, recipe: Recipe, found: Activations, ids: NDArray, basis: Tensor
) -> dict[str, Tensor]:
    """Return `embedding`, `position` and `head_bias`. Their rows are the tokens of the corpus, the special tokens, and
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
    positions = anatomy.embeddings(teacher.model, POSITIONS).weight.double()[-recipe.start_positions :]
    return {
        "embedding": torch.cat([embedding[kept].double(), mean[None]]) @ basis,
        "position": (positions + anatomy.embeddings(teacher.model, TOKEN_TYPES).weight[0].double()) @ basis,
        "head_bias": torch.stack([with_others(bias), with_others(bias + shift)]),
    }


def _head_moments(teacher: Teacher, found: Activations, ids: NDArray, count: NDArray, basis: Tensor) -> Tensor:
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


def _exact_arrays(teacher: Teacher, anatomy: Anatomy, norms: Sequence[Norm]) -> dict[str, Tensor]:
    """Return what a student of the teacher's own width has in place of `norm` and `head`: scale and bias of the norms,
    the head's last, and its dense layer with the bias as its last row."""
    dense, last = (teacher.model.get_submodule(name) for name in (anatomy.head_dense, anatomy.head_norm))
    pairs = [torch.stack([norm.weight, norm.bias]) for norm in norms]
    return {
        "norm_weight": torch.stack([*pairs, torch.stack([last.weight, last.bias]).double()]),  # type: ignore[list-item]
        "head_dense": torch.cat([dense.weight, dense.bias[None]]),  # type: ignore[list-item, index]
    }
