"""The start of a teacher whose norms come after the residual sum: x = norm(x + attention(x)), x = norm(x + ffn(x)).

Components of a vector that a narrower student lacks are replaced by their means, in the biases. Its norms divide by the
deviation of fewer components, so it is an approximation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
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
from cache_tools.components import falling, principal_basis, signs_of, slopes, with_signs
from cache_tools.store.recipe import Recipe
from cache_tools.teacher.model import Teacher
from cache_tools.teacher.start.activations import Activations, LayerMoments, Moments
from cache_tools.teacher.start.frame import StartFrame, of_heads, within_heads

SMALLEST = 1e-9
APART = 1e-3  # share of a norm's output


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
        variance = (second - inner.square()).clamp(min=0.0)
        together = ((self.weight[:, None] * self.inner.covariance) @ basis * basis).sum(0)
        return torch.stack([mean, inner, slopes(together, variance), second])


def make_frame(teacher: Teacher, anatomy: Anatomy, recipe: Recipe, found: Activations) -> StartFrame:
    """Return the basis, and the order of heads and neurons by the variance of what they add to the stream."""
    norms = norms_of(teacher, anatomy, found)
    heads, neurons = [], []
    for index in recipe.start_layers:
        output, down = (anatomy.layer(teacher.model, index, part).weight.double() for part in (OUTPUT, DOWN))
        matrices, context = of_heads(output, recipe), within_heads(found.layers[index].context.covariance, recipe)
        added = torch.einsum("hod,hde,hoe->h", matrices, context, matrices)
        heads.append(falling(added))
        added = found.layers[index].neurons.covariance * down.square().sum(0)  # [F]
        neurons.append(falling(added)[: recipe.start_neurons])
    streams = [norm.covariance for norm in norms]
    basis = principal_basis(streams, found.features.covariance, channels_apart(norms))
    return StartFrame(basis[:, : recipe.start_width], torch.stack(heads), torch.stack(neurons))


def channels_apart(norms: Sequence[Norm]) -> list[int]:
    """Return the channels whose scale in the norms is so much their own that they must not be mixed with others.

    A student's norm scales components, not channels, so what a norm does to a channel beyond the scale of all is lost
    where components mix it with others. Large models have a few channels with most of that.
    """
    own = torch.zeros_like(norms[0].weight)
    for norm in norms:
        square = norm.inner.second.diagonal()
        common = (norm.weight * square).sum() / square.sum()
        own += (norm.weight - common).square() * square / (norm.weight.square() * square).sum()
    return torch.nonzero(own / len(norms) > APART).flatten().tolist()


def project_layers(
    teacher: Teacher, anatomy: Anatomy, recipe: Recipe, found: Activations, frame: StartFrame
) -> dict[str, Tensor]:
    """Return the arrays of positions, norms and layers; at the teacher's width also those of the exact head."""
    norms, basis = norms_of(teacher, anatomy, found), frame.basis  # [H, w]
    layers = [
        _project_attention(teacher, anatomy, index, norms[2 * index], found.layers[index], basis, recipe, heads)
        | _project_ffn(teacher, anatomy, index, norms[2 * index + 1], found.layers[index], basis, neurons)
        for index, heads, neurons in zip(recipe.start_layers, frame.head_order, frame.neuron_order, strict=True)
    ]
    kept_norms = [norms[0], *(norms[2 * index + site] for index in recipe.start_layers for site in (1, 2))]
    positions = anatomy.embeddings(teacher.model, POSITIONS).weight.double()[-recipe.start_positions :]
    arrays = {
        "position": (positions + anatomy.embeddings(teacher.model, TOKEN_TYPES).weight[0].double()) @ basis,
        "norm": torch.stack([norm.rotated(basis) for norm in kept_norms]),
        **{name: torch.stack([layer[name] for layer in layers]) for name in layers[0]},
    }
    if recipe.start_width == recipe.teacher_hidden:
        arrays |= _exact_arrays(teacher, anatomy, kept_norms)
    return arrays


def norms_of(teacher: Teacher, anatomy: Anatomy, found: Activations) -> list[Norm]:
    """Return the norms in the order of the stream: the embeddings', then two of each layer."""
    modules = [(anatomy.embeddings(teacher.model, EMBEDDING_NORM), found.embedding_norm)]
    for index, moments in enumerate(found.layers):
        modules.append((anatomy.layer(teacher.model, index, ATTENTION_NORM), moments.attention_norm))
        modules.append((anatomy.layer(teacher.model, index, FFN_NORM), moments.ffn_norm))
    return [Norm(m.weight.detach().double(), m.bias.detach().double(), moments) for m, moments in modules]


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
    query, key, value = (
        _affine(teacher, anatomy, index, part, before.mean).unflatten(0, (heads, -1)) for part in (QUERY, KEY, VALUE)
    )  # [heads, dh, H + 1]
    output = _affine(teacher, anatomy, index, OUTPUT, found.context.mean)  # [H, H + 1]
    outputs, context = of_heads(output[:, :-1], recipe), within_heads(found.context.covariance, recipe)
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
    sign = signs_of(u)
    queries = root * (u * sign).T @ torch.linalg.pinv(left.T) @ query
    return queries, root * (v * sign[:, None]) @ torch.linalg.pinv(right.T) @ key


def align_values(output: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """Return (to_value [dh, dh], outputs [H, dh]): outputs @ to_value = output [H, dh], the columns orthonormal, by
    falling variance. `context` [dh, dh] is the covariance of what the output is multiplied with."""
    orthonormal, triangle = torch.linalg.qr(output)
    turn = with_signs(torch.linalg.eigh(triangle @ context @ triangle.T).eigenvectors.flip(1))
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


def _exact_arrays(teacher: Teacher, anatomy: Anatomy, norms: Sequence[Norm]) -> dict[str, Tensor]:
    """Return what a student of the teacher's own width has in place of `norm` and `head`: scale and bias of the norms,
    the head's last, and its dense layer with the bias as its last row."""
    dense, last = (teacher.model.get_submodule(name) for name in (anatomy.head_dense, anatomy.head_norm))
    pairs = [torch.stack([norm.weight, norm.bias]) for norm in norms]
    return {
        "norm_weight": torch.stack([*pairs, torch.stack([last.weight, last.bias]).double()]),  # type: ignore[list-item]
        "head_dense": torch.cat([dense.weight, dense.bias[None]]),  # type: ignore[list-item, index]
    }
