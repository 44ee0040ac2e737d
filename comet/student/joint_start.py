"""One start of several caches, as if it had been computed from all of their texts: for a student of several languages.

The start of a cache is in the principal components of its own text, and the components that a narrower student lacks
are replaced by means over that text. In the start of one language other languages lose what that one does not use, and
meet the wrong means. So the components are computed again from all texts together, and means and moments are those of
all. The teacher's matrices are the same in every start: they are taken from the first and turned. Every text counts the
same.

Each start holds only the diagonal of its moments. In its own components those of all sites together have no other
entries; those of a single site are also taken for diagonal, which is the one approximation. With starts narrower than
the teacher, all components are within those of the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cache_tools.components import principal_basis, slopes
from cache_tools.store.recipe import Recipe
from cache_tools.store.start import start_arrays
from comet.student.family import Read

UNMIXED = 1 - 1e-6  # entry of a component that is a channel set apart
SINGULAR = 1e-6  # of the largest eigenvalue of a metric: directions in which the tokens of a small text do not differ


@dataclass(frozen=True)
class JointStart:
    """The arrays of several starts in joint components, named and shaped as those of the first.

    `rows` [n_c, w] and `bias` [2, n_c] are `embedding` and `head_bias` of each cache's tokens.
    """

    arrays: dict[str, Tensor]
    rows: tuple[Tensor, ...]
    bias: tuple[Tensor, ...]

    def read(self, name: str, *region: slice) -> Tensor:
        """Return a region of an array."""
        return self.arrays[name][region]


@dataclass(frozen=True)
class _Start:
    """One of the starts: its small arrays, the teacher's layers in it (`attention` of the outputs only, [n, rows, w]),
    and the mean [w] of the head's features, which lies in the biases."""

    arrays: dict[str, Tensor]
    outputs: Tensor
    feature: Tensor

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]


def join_starts(recipes: Sequence[Recipe], reads: Sequence[Read]) -> JointStart:
    """Return one start of several, given for each the recipe and what reads its arrays.

    All must be of the same teacher and keep the same layers. Raises torch.linalg.LinAlgError for moments that cannot be
    decomposed.
    """
    starts = [_load(recipe, read) for recipe, read in zip(recipes, reads, strict=True)]
    basis, rotary = starts[0]["basis"], bool(recipes[0].start_rope)
    turn = _joint_turn([basis.T @ start["basis"] for start in starts], starts, rotary)  # [w, w], from the first's
    moves = [turn.T @ basis.T @ start["basis"] for start in starts]  # [w, w_c], from each start's components
    arrays = {"basis": basis @ turn}
    arrays |= {name: reads[0](name) @ turn for name in ("attention", "ffn")}
    if rotary:
        arrays |= _pre_norm_vectors(starts, moves)
    else:
        heads = [_row_heads(start, recipe) for start, recipe in zip(starts, recipes, strict=True)]
        arrays |= _post_norm_vectors(starts, moves, arrays["attention"], arrays["ffn"], heads)
        arrays["position"] = reads[0]("position") @ turn
    features = _moved([start.feature for start in starts], moves)
    arrays |= _head(starts, moves, features)
    rows = tuple(start["embedding"] @ move.T for start, move in zip(starts, moves, strict=True))
    shifts = [rows_ @ (features.mean(0) - own) for rows_, own in zip(rows, features, strict=True)]
    bias = tuple(
        torch.stack([start["head_bias"][0], start["head_bias"][1] + shift])
        for start, shift in zip(starts, shifts, strict=True)
    )
    return JointStart(arrays, rows, bias)


def _load(recipe: Recipe, read: Read) -> _Start:
    """Read what all starts give; the feature's mean is what the logits of the tokens are shifted by."""
    large = ("attention", "ffn", "position", "norm_weight", "head_dense")
    arrays = {name: read(name) for name in start_arrays(recipe) if name not in large}
    outputs = read("attention", slice(None), slice(3, 4))[:, 0]
    shift = (arrays["head_bias"][1] - arrays["head_bias"][0])[:-1, None]  # without the row of all other tokens
    feature = torch.linalg.lstsq(arrays["embedding"][:-1], shift, driver="gelsd").solution[:, 0]
    return _Start(arrays, outputs, feature)


def _moved(vectors: Sequence[Tensor], moves: Sequence[Tensor]) -> Tensor:
    """Return vectors […, w_c] of each start in the joint components, [C, …, w]."""
    return torch.stack([vector @ move.T for vector, move in zip(vectors, moves, strict=True)])


def _variances(start: _Start, rotary: bool) -> Tensor:
    """Return what the stream varies by in each component of a start, at each site: [sites, w]. In rotary starts it is
    the second moment, at equal sums, of the inputs of layers and head; see `cache_tools.teacher.start`."""
    if rotary:
        second = start["second_moment"][2:]
        return second / second.sum(1, keepdim=True)
    _, inner, slope, second = start["norm"].unbind(1)  # each [sites, w]
    return slope.square() * (second - inner.square()).clamp(min=0)


def _joint_turn(moves: Sequence[Tensor], starts: Sequence[_Start], rotary: bool) -> Tensor:
    """Return the joint components [w, w], in those of the first start. `moves` [w, w_c] lead to these."""
    streams, features = torch.zeros_like(moves[0]), torch.zeros_like(moves[0])
    for start, move in zip(starts, moves, strict=True):
        streams += move * _variances(start, rotary).sum(0) @ move.T
        features += move * _feature_variance(start) @ move.T
    means = _moved([start.feature for start in starts], moves)
    features += _between(means, means)
    if not rotary:  # whose second moments hold the means
        for site in _moved([start["norm"][:, 0] for start in starts], moves).unbind(1):
            streams += _between(site, site)
    apart = torch.nonzero(starts[0]["basis"].abs().amax(0) > UNMIXED).flatten().tolist()
    return principal_basis([streams], features, apart)


def _feature_variance(start: _Start) -> Tensor:
    """Return the variance [w] of the head's features in each component, as far as they follow from hidden states."""
    features = _features_by_hidden(start)
    return (features * torch.linalg.solve(start["head"][2], features.T).T).sum(1)


def _features_by_hidden(start: _Start) -> Tensor:
    """Return the covariance [w, w] of features by hidden states, of which `head` holds the product with the metric."""
    metric, cross, _ = start["head"]
    return torch.linalg.pinv(metric, hermitian=True, rtol=SINGULAR) @ cross


def _between(vectors: Tensor, others: Tensor) -> Tensor:
    """Return Σ (v − v̄)(o − ō)ᵀ [w, w] over C means of the starts, [C, w]."""
    return (vectors - vectors.mean(0)).T @ (others - others.mean(0))


def _head(starts: Sequence[_Start], moves: Sequence[Tensor], features: Tensor) -> dict[str, Tensor]:
    """Return `head` and `head_mean`. `features` [C, w] are the means of features."""
    number, hidden_means = len(starts), _moved([start["head_mean"] for start in starts], moves)

    def mean(matrices: Sequence[Tensor]) -> Tensor:
        """Return the mean over the starts of a matrix [w_c, w_c] of each, in the joint components."""
        moved = [move @ matrix @ move.T for move, matrix in zip(moves, matrices, strict=True)]
        return sum(moved, torch.zeros_like(moved[0])) / number

    metric = mean([start["head"][0] for start in starts])
    cross = mean([_features_by_hidden(start) for start in starts]) + _between(features, hidden_means) / number
    hidden = mean([start["head"][2] for start in starts]) + _between(hidden_means, hidden_means) / number
    return {"head": torch.stack([metric, metric @ cross, hidden]), "head_mean": hidden_means.mean(0)}


def _pre_norm_vectors(starts: Sequence[_Start], moves: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return `second_moment` and `embedding_scale`."""
    squares = [move.square() for move in moves]
    second = _moved([start["second_moment"] for start in starts], squares).mean(0)
    scaled = _moved([start["embedding_scale"] * start["second_moment"][0] for start in starts], squares).mean(0)
    return {"second_moment": second, "embedding_scale": slopes(scaled, second[0])}


def _post_norm_vectors(
    starts: Sequence[_Start], moves: Sequence[Tensor], attention: Tensor, ffn: Tensor, heads: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Return `norm` and the vectors of attention and ffn, which are [n, 4, rows, w] and [n, 2, f, w] in the joint
    components. `heads` [n, rows] is the teacher's head that each row of a start belongs to."""
    means, _, _, _, outputs = (_moved([s["attention_vector"][:, i] for s in starts], moves) for i in range(5))
    inputs, sums = (_moved([s["ffn_output"][:, i] for s in starts], moves) for i in range(2))  # [C, n, w]
    _, query, value, _, _ = starts[0]["attention_vector"].unbind(1)  # [n, rows], at the first start's mean
    further = means.mean(0) - means[0]  # [n, w]
    vectors = [
        means.mean(0),
        query + torch.einsum("nrw,nw->nr", attention[:, 0], further),
        value + torch.einsum("nrw,nw->nr", attention[:, 2], further),
        _context(starts, moves, attention[:, 3], heads),
        outputs.mean(0),
    ]
    up = starts[0]["ffn_vector"][:, 0] + torch.einsum("nfw,nw->nf", ffn[:, 0], inputs.mean(0) - inputs[0])
    return {
        "norm": _norms(starts, moves),
        "attention_vector": torch.stack(vectors, 1),
        "ffn_vector": torch.stack([up, _activations(starts)], 1),
        "ffn_output": torch.stack([inputs.mean(0), sums.mean(0)], 1),
    }


def _norms(starts: Sequence[_Start], moves: Sequence[Tensor]) -> Tensor:
    """Return `norm` [sites, 4, w]."""
    squares = [move.square() for move in moves]
    means, inner = (_moved([start["norm"][:, i] for start in starts], moves) for i in range(2))  # [C, sites, w]
    variances = [(start["norm"][:, 3] - start["norm"][:, 1].square()).clamp(min=0) for start in starts]
    variance = (_moved(variances, squares) + (inner - inner.mean(0)).square()).mean(0)
    products = _moved([s["norm"][:, 2] * own for s, own in zip(starts, variances, strict=True)], squares)
    together = (products + (means - means.mean(0)) * (inner - inner.mean(0))).mean(0)
    slope = torch.stack([slopes(*site) for site in zip(together, variance, strict=True)])
    return torch.stack([means.mean(0), inner.mean(0), slope, variance + inner.mean(0).square()], 1)


def _row_heads(start: _Start, recipe: Recipe) -> Tensor:
    """Return the teacher's head of each row [n, rows]: the first dimension of every head comes before all second."""
    rows = torch.arange(start.outputs.shape[1]) % recipe.teacher_heads
    return start["head_order"].long()[:, rows]


def _context(starts: Sequence[_Start], moves: Sequence[Tensor], outputs: Tensor, heads: Sequence[Tensor]) -> Tensor:
    """Return the mean output of attention, before its matrix, in the rows of the first start, [n, rows].

    Rows are turned within a head, in each start another way, so what a head adds to the stream is compared. Its
    `outputs` [n, rows, w] are orthonormal.
    """
    added = outputs.new_zeros(len(outputs), int(heads[0].max()) + 1, outputs.shape[-1])  # [n, heads, w]
    for start, move, head in zip(starts, moves, heads, strict=True):
        rows = (start["attention_vector"][:, 3, :, None] * start.outputs) @ move.T  # [n, rows, w]
        added.scatter_add_(1, head[..., None].expand_as(rows), rows / len(starts))
    of_rows = added.gather(1, heads[0][..., None].expand_as(outputs))  # [n, rows, w]
    return (outputs * of_rows).sum(-1)


def _activations(starts: Sequence[_Start]) -> Tensor:
    """Return the mean activation of the first start's neurons [n, f] over the starts that keep them."""
    orders = [start["neuron_order"].long() for start in starts]  # [n, f_c]
    known, index = torch.unique(torch.cat(orders, 1), return_inverse=True)
    indices = index.split([order.shape[1] for order in orders], 1)
    total = starts[0]["ffn_vector"].new_zeros(len(index), len(known))
    number = torch.zeros_like(total)
    for start, own in zip(starts, indices, strict=True):
        total.scatter_add_(1, own, start["ffn_vector"][:, 1])
        number.scatter_add_(1, own, torch.ones_like(start["ffn_vector"][:, 1]))
    return total.gather(1, indices[0]) / number.gather(1, indices[0])
