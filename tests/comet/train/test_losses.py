"""Each loss against a dense float64 reference, in values and gradients."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cache_tools.attention import decode_keys, encode_keys
from cache_tools.teacher.attention import keep_keys
from cache_tools.teacher.head import BlockedHead, Head
from cache_tools.teacher.threshold import keep_threshold_sample
from cache_tools.text.draws import attention_queries, key_offsets
from comet.train.losses import (
    SampledRows,
    attention_cross_entropy,
    attention_mse,
    attention_projection,
    bucketed_kl,
    hard_cross_entropy,
    residual_kl,
    sampled_kl,
)
from comet.train.signals import in_student_ids

TARGETS, VOCABULARY = 5, 60


def logits_of(seed: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    """(teacher, student) logits [T, V] float64; the student's with gradient."""
    generator = torch.Generator().manual_seed(seed)
    teacher = scale * torch.randn(TARGETS, VOCABULARY, generator=generator, dtype=torch.float64)
    student = scale * torch.randn(TARGETS, VOCABULARY, generator=generator, dtype=torch.float64)
    return teacher, student.requires_grad_()


def dense_kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    p, q = (teacher / temperature).log_softmax(1), (student / temperature).log_softmax(1)
    return (p.exp() * (p - q)).sum(1)


def sparse(teacher: Tensor, student: Tensor, kept_id: Tensor, temperature: float) -> tuple[Tensor, ...]:
    """(logprob, tail, kept, rest) of these tokens, as cache and head give them."""
    logprob = teacher.log_softmax(1)
    tail = (logprob.scatter(1, kept_id, -torch.inf) / temperature).logsumexp(1)
    rest = (student.scatter(1, kept_id, -torch.inf) / temperature).logsumexp(1)
    return logprob.gather(1, kept_id), tail, student.gather(1, kept_id), rest


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("seed", range(3))
def test_bucketed_kl_over_the_whole_vocabulary_is_the_dense_kl(seed: int, temperature: float) -> None:
    teacher, student = logits_of(seed)
    everything = teacher.argsort(1, descending=True)
    ours = bucketed_kl(*sparse(teacher, student, everything, temperature), temperature)
    reference = dense_kl(teacher, student, temperature)
    torch.testing.assert_close(ours, reference)
    gradients = [torch.autograd.grad(loss.sum(), student)[0] for loss in (ours, reference)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_bucketed_kl_is_the_dense_kl_of_the_merged_distributions(temperature: float) -> None:
    teacher, student = logits_of(7)
    kept_id = teacher.topk(6, dim=1).indices
    ours = bucketed_kl(*sparse(teacher, student, kept_id, temperature), temperature)

    def merged(logits: Tensor) -> Tensor:
        probability = (logits / temperature).softmax(1)
        kept = probability.gather(1, kept_id)
        return torch.cat([kept, 1 - kept.sum(1, keepdim=True)], 1)

    p, q = merged(teacher), merged(student)
    torch.testing.assert_close(ours, (p * (p / q).log()).sum(1))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_residual_kl_is_dense_kl_with_the_tail_on_the_label(seed: int, temperature: float) -> None:
    teacher, student = logits_of(seed)
    kept_id = teacher.topk(6, dim=1).indices
    truth_id = torch.cat([kept_id[:2, 3], teacher[2:].argmin(1)])  # two that were kept and three that were not
    logprob, tail, kept, rest = sparse(teacher, student, kept_id, temperature)
    is_truth = kept_id == truth_id[:, None]
    truth = student.gather(1, truth_id[:, None])[:, 0]
    ours = residual_kl(logprob, tail, is_truth, kept, rest, truth, temperature)

    p = (teacher / temperature).softmax(1)
    target = torch.zeros_like(p).scatter(1, kept_id, p.gather(1, kept_id))
    target.scatter_add_(1, truth_id[:, None], 1 - target.sum(1, keepdim=True))
    q = (student / temperature).log_softmax(1)
    reference = (torch.xlogy(target, target) - target * q).sum(1)
    torch.testing.assert_close(ours, reference)
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), student)[0] for loss in (ours, reference)))


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, VOCABULARY), temperature=st.sampled_from([0.5, 1.0, 2.0]))
def test_bucketed_kl_is_a_lower_bound_and_not_negative(seed: int, k: int, temperature: float) -> None:
    teacher, student = logits_of(seed)
    kept_id = teacher.topk(k, dim=1).indices
    ours = bucketed_kl(*sparse(teacher, student, kept_id, temperature), temperature)
    assert (ours >= -1e-9).all()
    assert (ours <= dense_kl(teacher, student, temperature) + 1e-9).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_trimmed_loss_is_the_dense_loss_given_seen_ids(temperature: float) -> None:
    teacher, _ = logits_of(11)
    seen = torch.arange(0, VOCABULARY, 3)
    student = (2.0 * torch.randn(TARGETS, len(seen), dtype=torch.float64)).requires_grad_()
    student_id = torch.full((VOCABULARY,), -1)
    student_id[seen] = torch.arange(len(seen))

    kept_id = teacher.argsort(1, descending=True)[:, : VOCABULARY - 1]  # all but one: every seen id but at most one
    logprob = teacher.log_softmax(1)
    unseen = torch.ones(VOCABULARY, dtype=torch.bool).index_fill(0, seen, False)
    others = logprob.scatter(1, kept_id, -torch.inf).masked_fill(unseen, -torch.inf)
    tail = (others / temperature).logsumexp(1)
    kept, conditioned = in_student_ids(kept_id, logprob.gather(1, kept_id), student_id.__getitem__)
    padded = torch.cat([student, torch.full((TARGETS, 1), -torch.inf, dtype=student.dtype)], 1)
    at = torch.where(kept < 0, len(seen), kept)
    rest = (padded.scatter(1, at, -torch.inf) / temperature).logsumexp(1)
    ours = bucketed_kl(conditioned, tail, padded.gather(1, at), rest, temperature)
    reference = dense_kl(teacher[:, seen], student, temperature)
    torch.testing.assert_close(ours, reference)
    gradients = [torch.autograd.grad(loss.sum(), student)[0] for loss in (ours, reference)]
    torch.testing.assert_close(*gradients)


DRAWS = 4000


def mean_over_samples(
    teacher: Tensor, student: Tensor, student_id: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """The sampled loss [T] and its gradient, means over evenly spread offsets; `student_id` as in in_student_ids."""
    seen = student_id >= 0
    head = BlockedHead(Head(teacher.T.float(), torch.zeros(VOCABULARY)), seen)
    offset = ((torch.arange(DRAWS) + 0.5) / DRAWS).double().repeat_interleave(TARGETS)  # [DRAWS × T]
    drawn = keep_threshold_sample(torch.eye(TARGETS).repeat(DRAWS, 1), head, 12, (temperature,), offset)
    kept_id, logweight = in_student_ids(drawn.ids[:, 0], drawn.logweight[:, 0].double(), student_id.__getitem__)
    entropy = (drawn.entropy if seen.all() else drawn.entropy_seen)[:, 0].double()
    padded = torch.cat([student, torch.full((TARGETS, 1), -torch.inf, dtype=student.dtype)], 1).repeat(DRAWS, 1)
    at = torch.where(kept_id < 0, student.shape[1], kept_id)
    rest = (padded.scatter(1, at, -torch.inf) / temperature).logsumexp(1)
    losses = sampled_kl(logweight, entropy, padded.gather(1, at), rest, temperature).view(DRAWS, TARGETS).mean(0)
    return losses, torch.autograd.grad(losses.sum(), student)[0]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_threshold_samples_average_to_the_dense_kl_and_gradient(temperature: float) -> None:
    teacher, student = logits_of(3, scale=1.5)
    reference = dense_kl(teacher, student, temperature)
    values, gradient = mean_over_samples(teacher, student, torch.arange(VOCABULARY), temperature)
    torch.testing.assert_close(gradient, torch.autograd.grad(reference.sum(), student)[0], rtol=0, atol=2e-3)
    torch.testing.assert_close(values, reference, rtol=0, atol=5e-3)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_trimmed_loss_of_samples_is_kl_times_seen_mass(temperature: float) -> None:
    teacher, _ = logits_of(4, scale=1.5)
    seen = torch.arange(0, VOCABULARY, 2)
    student_id = torch.full((VOCABULARY,), -1).index_copy(0, seen, torch.arange(len(seen)))
    student = torch.randn(TARGETS, len(seen), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    student.requires_grad_()
    mass = (teacher / temperature).softmax(1)[:, seen].sum(1)
    reference = mass * dense_kl(teacher[:, seen], student, temperature)
    values, gradient = mean_over_samples(teacher, student, student_id, temperature)
    torch.testing.assert_close(gradient, torch.autograd.grad(reference.sum(), student)[0], rtol=0, atol=2e-3)
    torch.testing.assert_close(values, reference, rtol=0, atol=5e-3)


def test_a_slot_left_out_changes_neither_value_nor_gradient() -> None:
    teacher, student = logits_of(5)
    kept_id = teacher.topk(6, dim=1).indices
    logprob, tail, kept, rest = sparse(teacher, student, kept_id, 1.0)
    extra = torch.full((TARGETS, 2), -torch.inf, dtype=torch.float64)
    entropy = torch.full((TARGETS,), 1.5, dtype=torch.float64)
    for loss in (
        lambda lp, z: bucketed_kl(lp, tail, z, rest, 1.0),
        lambda lp, z: sampled_kl(lp, entropy, z, rest, 1.0),
    ):
        plain, padded = loss(logprob, kept), loss(torch.cat([logprob, extra], 1), torch.cat([kept, extra], 1))
        torch.testing.assert_close(plain, padded)
        gradients = [torch.autograd.grad(x.sum(), student, retain_graph=True)[0] for x in (plain, padded)]
        torch.testing.assert_close(*gradients)


def test_ids_that_are_left_out_stay_so() -> None:
    """−1 in a sample of fewer than k tokens must not become some token's id."""
    student_id = torch.tensor([5, -1, 7])
    kept, value = in_student_ids(torch.tensor([[2, 1, 0, -1]]), torch.zeros(1, 4), student_id.__getitem__)
    assert kept.tolist() == [[7, -1, 5, -1]]
    assert value.tolist() == [[0.0, -torch.inf, 0.0, -torch.inf]]


def test_hard_cross_entropy_is_torch_s() -> None:
    teacher, student = logits_of(9)
    truth_id = torch.randint(VOCABULARY, (TARGETS,))
    _, _, kept, rest = sparse(teacher, student, teacher.topk(4, dim=1).indices, 1.0)
    ours = hard_cross_entropy(student.gather(1, truth_id[:, None])[:, 0], kept, rest)
    torch.testing.assert_close(ours, torch.nn.functional.cross_entropy(student, truth_id, reduction="none"))


def random_rows(length: Tensor, queries: Tensor, slots: int, seq_len: int, layers: int = 2) -> Tensor:
    """Rows of attention [B, layers, S, L] float64 of so many tokens and queries [B] each; zero in other places."""
    rows = torch.rand(len(length), layers, slots, seq_len, dtype=torch.float64)
    rows = rows * (torch.arange(seq_len) < length[:, None])[:, None, None]
    rows = rows / rows.sum(-1, keepdim=True)
    return rows * (torch.arange(slots) < queries[:, None])[:, None, :, None]


def whole(rows: Tensor, length: Tensor) -> SampledRows:
    """All keys of these rows, as a sample."""
    return SampledRows(torch.arange(rows.shape[3]).expand_as(rows), rows, length)


LENGTH, QUERIES = torch.tensor([20, 6, 3]), torch.tensor([5, 2, 1])


def test_attention_losses_equal_loops_over_queries_and_keys() -> None:
    teacher = random_rows(LENGTH, QUERIES, 5, 20)
    student = random_rows(LENGTH, torch.full_like(QUERIES, 5), 5, 20)  # also where there is no query
    sampled = whole(teacher, LENGTH)
    for row, (n, queries) in enumerate(zip(LENGTH.tolist(), QUERIES.tolist(), strict=True)):
        cross_entropy = mse = 0.0
        for layer in range(2):
            for query in range(queries):
                p, q = teacher[row, layer, query, :n], student[row, layer, query, :n]
                cross_entropy -= (p * q.log()).sum().item() / (2 * queries)
                mse += (p - q).square().sum().item() / (2 * queries)
        assert attention_cross_entropy(sampled, student)[row].item() == pytest.approx(cross_entropy)
        assert attention_mse(sampled, student)[row].item() == pytest.approx(mse)


def test_equal_attention_has_no_gradient_and_is_finite() -> None:
    teacher = random_rows(LENGTH, QUERIES, 5, 20)
    scores = torch.where(teacher > 0, teacher, 1e-30).log().requires_grad_()
    student = scores.softmax(-1)
    sampled, identity = whole(teacher, LENGTH), torch.eye(16, dtype=torch.float64)
    for loss in (
        attention_cross_entropy(sampled, student),
        attention_mse(sampled, student),
        attention_projection(sampled, student, identity),
    ):
        (gradient,) = torch.autograd.grad(loss.sum(), scores, retain_graph=True)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)


@pytest.mark.parametrize("loss", [attention_cross_entropy, attention_mse])
def test_over_all_draws_the_mean_gradient_of_attention_is_that_of_whole_rows(loss: Callable[..., Tensor]) -> None:
    """And the mean cross-entropy theirs. What a cache keeps: queries, keys and codes, of many rows alike."""
    n, every, k, draws = 40, 8, 6, 4000
    torch.manual_seed(0)
    teacher = (2 * torch.randn(n, n)).softmax(1).double()
    scores = torch.randn(n, n, dtype=torch.float64).requires_grad_()
    student = scores.softmax(1)
    keys, length = np.random.default_rng(0).integers(0, 2**64, draws, dtype=np.uint64), torch.full((draws,), n)
    slots = -(-n // every)
    at = torch.from_numpy(attention_queries(keys, length.numpy(), (3,), every, slots).astype(np.int64))  # [draws, 1, S]
    offset = torch.from_numpy(key_offsets(keys, (3,), slots))
    kept, code = keep_keys(teacher[at], length, torch.ones_like(at, dtype=torch.bool), k, offset)
    key, weight = decode_keys(encode_keys(kept, n), code, n)
    found = loss(SampledRows(key, weight.double(), length), student[at]).mean()
    expected = loss(whole(teacher[None, None], torch.tensor([n])), student[None, None]).mean()
    if loss is attention_cross_entropy:
        assert found.item() == pytest.approx(expected.item(), rel=0.01)
    mine, theirs = (torch.autograd.grad(value, scores, retain_graph=True)[0] for value in (found, expected))
    assert (mine - theirs).norm() < 0.04 * theirs.norm()


def test_rows_are_pooled_block_by_block() -> None:
    rows = random_rows(LENGTH, QUERIES, 5, 20)
    sampled = whole(rows, LENGTH)
    size = 4
    pooled = sampled.pooled(rows, size)
    for row, (n, queries) in enumerate(zip(LENGTH.tolist(), QUERIES.tolist(), strict=True)):
        of_query = [i * min(queries, size) // queries for i in range(queries)]
        of_key = [i * min(n, size) // n for i in range(n)]
        expected = torch.zeros(2, size, size, dtype=torch.float64)
        for i, j in np.ndindex(queries, n):
            expected[:, of_query[i], of_key[j]] += rows[row, :, i, j] / of_query.count(of_query[i])
        torch.testing.assert_close(pooled[row], expected)
    used = sampled.used_blocks(size)
    assert [blocks.sum(1).tolist() for blocks in used] == [[4, 2, 1], [4, 4, 3]]


def test_the_projection_multiplies_flattened_maps_and_counts_no_padding() -> None:
    teacher, student = (random_rows(LENGTH, QUERIES, 5, 20) for _ in range(2))
    sampled, matrix = whole(teacher, LENGTH), torch.randn(16, 16, dtype=torch.float64)
    theirs, mine = sampled.pooled(teacher, 4), sampled.pooled(student, 4)
    for row, (queries, keys) in enumerate(((4, 4), (2, 4), (1, 3))):
        by_hand = 0.0
        for layer in (0, 1):
            difference = (matrix @ mine[row, layer].flatten()).view(4, 4) - theirs[row, layer]
            by_hand += difference[:queries, :keys].square().sum().item() / 2
        assert attention_projection(sampled, student, matrix)[row].item() == pytest.approx(by_hand)
