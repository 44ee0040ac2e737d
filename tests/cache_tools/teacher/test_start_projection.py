"""The projection of a teacher: what each of its steps keeps exactly, and in what order."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cache_tools.components import FEATURE_WEIGHT, principal_basis
from cache_tools.teacher.start.activations import Moments
from cache_tools.teacher.start.post_norm import Norm, align_queries, align_values

HIDDEN = 12
SIZES = st.integers(1, 6)
SEEDS = st.integers(0, 2**31)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def of_rank(seed: int, rank: int, rows: int, columns: int) -> Tensor:
    return normal(seed, rows, rank) @ normal(seed + 1, rank, columns)


def covariance(seed: int, size: int = HIDDEN) -> Tensor:
    vectors = normal(seed, 4 * size, size) * torch.linspace(2.0, 0.2, size)
    return vectors.T @ vectors / len(vectors)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


@settings(deadline=None, max_examples=60)
@given(SEEDS, SIZES, st.data())
def test_queries_and_keys_keep_their_products(seed: int, size: int, data: st.DataObject) -> None:
    """Of a whole head, or one whose queries, keys or both have a smaller rank."""
    ranks = [data.draw(st.integers(0, size)) for _ in range(2)]
    query, key = of_rank(seed, ranks[0], size, HIDDEN + 1), of_rank(seed + 9, ranks[1], size, HIDDEN)
    scale = torch.linalg.cholesky(covariance(seed))
    queries, keys = align_queries(query, key, scale)
    assert (queries.shape, keys.shape) == (query.shape, key.shape)
    assert_close(queries.T @ keys, query.T @ key)


@settings(deadline=None, max_examples=30)
@given(SEEDS, SIZES)
def test_dimensions_of_a_head_are_in_the_order_of_their_share_of_the_scores(seed: int, size: int) -> None:
    query, key, root = normal(seed, size, HIDDEN + 1), normal(seed + 9, size, HIDDEN), covariance(seed)
    queries, keys = align_queries(query, key, root)
    ending = torch.block_diag(root, torch.ones(1, 1, dtype=root.dtype))
    asking, asked = queries @ ending, keys @ root
    shares = asking.norm(dim=1) * asked.norm(dim=1)
    assert_close(shares, torch.linalg.svdvals((query @ ending).T @ (key @ root))[:size])
    for rows in (asking, asked):
        gram = rows @ rows.T
        assert_close(gram, gram.diag().diag())
    # the best approximation of all scores by so many dimensions, not just a good one
    for kept in range(1, size):
        error = (query @ ending).T @ (key @ root) - asking[:kept].T @ asked[:kept]
        assert_close(error.norm(), shares[kept:].norm())


def test_a_direction_of_equal_and_opposite_entries_is_kept() -> None:
    """Its entries sum to zero, which has no sign."""
    query = torch.tensor([[-1.0, 0.0, 0.0], [-1.0, 1.0, 0.0]], dtype=torch.float64)
    key = torch.tensor([[0.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    queries, keys = align_queries(query, key, torch.eye(2, dtype=torch.float64))
    assert_close(queries.T @ keys, query.T @ key)


@settings(deadline=None, max_examples=60)
@given(SEEDS, SIZES, st.data())
def test_values_and_outputs_keep_their_products(seed: int, size: int, data: st.DataObject) -> None:
    output = of_rank(seed, data.draw(st.integers(0, size)), HIDDEN, size)
    to_value, outputs = align_values(output, covariance(seed, size))
    assert_close(outputs @ to_value, output)
    assert_close(outputs.T @ outputs, torch.eye(size, dtype=torch.float64))


@settings(deadline=None, max_examples=30)
@given(SEEDS, SIZES)
def test_outputs_are_in_the_order_of_what_they_add(seed: int, size: int) -> None:
    output, context = normal(seed, HIDDEN, size), covariance(seed, size)
    to_value, _ = align_values(output, context)
    added = to_value @ context @ to_value.T
    assert_close(added, added.diag().diag())
    assert (added.diag().diff() <= 1e-9).all()
    assert_close(added.diag().sum(), (output @ context @ output.T).trace())


@settings(deadline=None, max_examples=20)
@given(SEEDS, st.integers(2, HIDDEN))
def test_the_basis_is_orthonormal_leading_first_and_of_one_sign(seed: int, size: int) -> None:
    streams, features = [covariance(seed + i, size) for i in range(3)], covariance(seed + 3, size)
    basis = principal_basis(streams, features)
    assert_close(basis.T @ basis, torch.eye(size, dtype=torch.float64))
    total = sum(streams, torch.zeros(size, size, dtype=torch.float64))
    together = total / total.trace() + FEATURE_WEIGHT * features / features.trace()
    rotated = basis.T @ together @ basis
    assert_close(rotated, rotated.diag().diag())
    assert (rotated.diag().diff() <= 1e-9).all()
    assert (basis.gather(0, basis.abs().argmax(0, keepdim=True)) > 0).all()


def test_the_basis_does_not_depend_on_the_size_of_streams_or_features() -> None:
    streams, features = [covariance(0), covariance(1)], covariance(2)
    expected = principal_basis(streams, features)
    assert_close(principal_basis([7.0 * s for s in streams], 0.1 * features), expected)


def test_the_basis_of_turned_streams_is_turned() -> None:
    streams, features = [covariance(0), covariance(1)], covariance(2)
    turn = torch.linalg.qr(normal(3, HIDDEN, HIDDEN))[0]
    expected = turn @ principal_basis(streams, features)
    found = principal_basis([turn @ s @ turn.T for s in streams], turn @ features @ turn.T)
    assert_close(found.abs(), expected.abs())


@pytest.fixture
def samples() -> Tensor:
    """Normalised vectors [N, H] of unequal variances."""
    vectors = normal(0, 500, HIDDEN) * torch.linspace(3.0, 0.5, HIDDEN) + normal(1, HIDDEN)
    return torch.nn.functional.layer_norm(vectors, (HIDDEN,))


@pytest.fixture
def norm(samples: Tensor) -> Norm:
    return Norm(normal(2, HIDDEN), normal(3, HIDDEN), Moments(samples.mean(0), samples.T @ samples / len(samples)))


def test_the_moments_of_a_norm_are_those_of_its_outputs(norm: Norm, samples: Tensor) -> None:
    outputs = samples * norm.weight + norm.bias
    assert_close(norm.mean, outputs.mean(0))
    assert_close(norm.covariance, outputs.T.cov(correction=0))


@pytest.mark.parametrize("width", [1, 5, HIDDEN])
def test_a_rotated_norm_is_what_its_samples_give(norm: Norm, samples: Tensor, width: int) -> None:
    basis = torch.linalg.qr(normal(4, HIDDEN, HIDDEN))[0][:, :width]
    outputs, inner = (samples * norm.weight + norm.bias) @ basis, samples @ basis
    slopes = [np.polyfit(inner[:, i].numpy(), outputs[:, i].numpy(), 1)[0] for i in range(width)]
    expected = torch.stack([outputs.mean(0), inner.mean(0), torch.tensor(slopes), inner.square().mean(0)])
    assert_close(norm.rotated(basis), expected)


@pytest.mark.parametrize("seed", range(5))
def test_the_direction_that_a_norm_removes_has_no_moments(seed: int) -> None:
    """By rounding its second moment would be a little below zero, and its slope anything."""
    samples = torch.nn.functional.layer_norm(normal(seed, 100, HIDDEN).float(), (HIDDEN,)).double()
    norm = Norm(normal(2, HIDDEN), normal(3, HIDDEN), Moments(samples.mean(0), samples.T @ samples / len(samples)))
    removed = torch.full((HIDDEN, 1), HIDDEN**-0.5, dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat([removed, normal(4, HIDDEN, HIDDEN - 1)], 1)).Q
    outputs, inner = (samples * norm.weight) @ basis, samples @ basis
    products, squares = ((inner * of).sum(0) - inner.sum(0) * of.mean(0) for of in (outputs, inner))  # [H]
    _, found_inner, slope, second = norm.rotated(basis)
    assert abs(found_inner[0]) < 1e-6 and 0 <= second[0] < 1e-12
    assert slope[0].item() == pytest.approx((products.sum() / squares.sum()).item(), rel=1e-6)
    assert_close(slope[1:], (products / squares)[1:])
