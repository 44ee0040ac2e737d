"""The sliced head against one dense matrix, in values and gradients."""

import pytest
import torch
from torch import Tensor

import comet.student.head
from comet.student.head import lookup, sparse_head

TARGETS, WIDTH = 7, 12


def inputs(vocab_size: int, k: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(TARGETS, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(vocab_size, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    bias = torch.randn(vocab_size, generator=generator, dtype=torch.float64).requires_grad_()
    kept_id = torch.stack([torch.randperm(vocab_size, generator=generator)[:k] for _ in range(TARGETS)])
    truth_id = torch.randint(vocab_size, (TARGETS,), generator=generator)
    return (
        features.float().detach().requires_grad_(),
        weight.float().detach().requires_grad_(),
        (bias.float().detach().requires_grad_()),
        kept_id,
        truth_id,
    )


def dense_head(
    features: Tensor, weight: Tensor, bias: Tensor, kept_id: Tensor, truth_id: Tensor, temperatures: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    logits = features.double() @ weight.double().T + bias.double()
    others = logits.scatter(1, kept_id, -torch.inf)
    rest = torch.stack([(others / t).logsumexp(1) for t in temperatures], 1)
    return logits.gather(1, kept_id), logits.gather(1, truth_id[:, None])[:, 0], rest


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("vocab_size", "k", "slice_size"), [(50, 5, 16), (64, 5, 64), (33, 1, 8), (40, 39, 16)])
def test_values_and_gradients_equal_the_dense_head(
    vocab_size: int, k: int, slice_size: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comet.student.head, "VOCABULARY_SLICE", slice_size)
    temperatures = (1.0, 2.0)
    features, weight, bias, kept_id, truth_id = inputs(vocab_size, k, seed)
    mixing = torch.Generator().manual_seed(seed + 100)
    results = []
    for head in (sparse_head, dense_head):
        outputs = head(features, weight, bias, kept_id, truth_id, temperatures)
        weights = [torch.randn(o.shape, generator=mixing.manual_seed(9)) for o in outputs]
        loss = sum((o * w).sum() for o, w in zip(outputs, weights, strict=True))
        results.append((outputs, torch.autograd.grad(loss, (features, weight, bias))))
    (sparse, sparse_gradients), (dense, dense_gradients) = results
    for ours, reference in zip((*sparse, *sparse_gradients), (*dense, *dense_gradients), strict=True):
        torch.testing.assert_close(ours.double(), reference.double(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("slice_size", [16, 64])
def test_each_target_takes_the_bias_of_its_corpus(slice_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one head for each corpus, in values and gradients; what a corpus lacks has a bias of −∞."""
    monkeypatch.setattr(comet.student.head, "VOCABULARY_SLICE", slice_size)
    features, weight, bias, kept_id, truth_id = inputs(50, 5, 0)
    excluded = torch.zeros(3, 50, dtype=torch.bool)
    excluded[0, 30:], excluded[1, :10], excluded[2, ::2] = True, True, True
    corpus = torch.tensor([0, 2, 1, 0, 1, 2, 2])
    biases = bias.masked_fill(excluded, -torch.inf)  # [C, V]
    kept, label, rest = sparse_head(features, weight, biases, kept_id, truth_id, (1.0, 2.0), corpus=corpus)
    finite = kept.masked_fill(kept == -torch.inf, 0).sum() + rest.sum()
    found = torch.autograd.grad(finite, (features, weight, bias))
    wanted = [torch.zeros_like(gradient) for gradient in found]
    for number in range(3):
        mine = corpus == number
        one = bias.masked_fill(excluded[number], -torch.inf)
        alone = sparse_head(features[mine], weight, one, kept_id[mine], truth_id[mine], (1.0, 2.0))
        for whole, part in zip((kept, label, rest), alone, strict=True):
            torch.testing.assert_close(whole[mine], part)
        finite = alone[0].masked_fill(alone[0] == -torch.inf, 0).sum() + alone[2].sum()
        for total, gradient in zip(wanted, torch.autograd.grad(finite, (features, weight, bias)), strict=True):
            total += gradient
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_an_empty_rest_is_minus_infinity_and_passes_no_gradient() -> None:
    features, weight, bias, _, truth_id = inputs(20, 1, 0)
    everything = torch.arange(20).expand(TARGETS, -1)
    kept, _, rest = sparse_head(features, weight, bias, everything, truth_id, (1.0,))
    assert (rest == -torch.inf).all()
    total = torch.logaddexp(kept.logsumexp(1), rest[:, 0]).sum()
    gradient = torch.autograd.grad(total, features)[0]
    dense = torch.autograd.grad((features @ weight.T + bias).logsumexp(1).sum(), features)[0]
    torch.testing.assert_close(gradient, dense, rtol=1e-5, atol=1e-5)


def test_without_targets_all_gradients_are_zero() -> None:
    features, weight, bias, kept_id, truth_id = inputs(20, 4, 0)
    kept, label, rest = sparse_head(features[:0], weight, bias, kept_id[:0], truth_id[:0], (2.0, 1.0))
    assert (kept.shape, label.shape, rest.shape) == ((0, 4), (0,), (0, 2))
    gradients = torch.autograd.grad(kept.sum() + label.sum() + rest.sum(), (features, weight, bias))
    assert all((gradient == 0).all() for gradient in gradients)


def test_ids_of_minus_one_and_biases_of_minus_infinity_drop_out() -> None:
    features, weight, bias, kept_id, truth_id = inputs(20, 4, 1)
    kept_id[:, 2] = -1
    bias.data[7] = -torch.inf
    kept, _, rest = sparse_head(features, weight, bias, kept_id, truth_id, (1.0,))
    assert (kept[:, 2] == -torch.inf).all()
    logits = features @ weight.T + bias
    others = logits.clone()
    for column in (0, 1, 3):
        others.scatter_(1, kept_id[:, column, None], -torch.inf)
    torch.testing.assert_close(rest[:, 0], others.logsumexp(1), rtol=1e-5, atol=1e-5)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(rest.sum(), (features, weight)))


@pytest.mark.parametrize("head_is_used", [True, False])
def test_a_weight_shared_by_lookup_and_head_sums_both_gradients(head_is_used: bool) -> None:
    _, weight, bias, kept_id, truth_id = inputs(50, 5, 0)
    ids = torch.tensor([3, 3, 49, 0, 7, 3, 12])

    def loss(rows: Tensor, kept: Tensor, truth: Tensor, rest: Tensor) -> Tensor:
        grad_buffer = kept.sum() + truth.square().sum() + 2 * rest.sum()
        return rows.square().sum() + (grad_buffer if head_is_used else 0.0)

    shared: list[Tensor] = []
    rows = lookup(weight, ids, shared)
    ours = loss(rows, *sparse_head(rows.tanh(), weight, bias, kept_id, truth_id, (2.0,), shared))
    plain_rows = weight[ids]
    plain = loss(plain_rows, *sparse_head(plain_rows.tanh(), weight, bias, kept_id, truth_id, (2.0,)))
    torch.testing.assert_close(*(torch.autograd.grad(total, weight)[0] for total in (ours, plain)))
    assert not shared, "nothing is left for another step"
