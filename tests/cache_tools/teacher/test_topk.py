"""The k best tokens and both tails, against dense float64 references."""

import math

import pytest
import torch
from helpers.dense import SEEDS, TEMPERATURES, assert_equals_the_dense_reference, random_logits, random_seen, topk_of
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_tools.teacher import head as head_module
from cache_tools.teacher.head import BlockedHead, Head
from cache_tools.teacher.topk import keep_topk


def in_slices_of(tokens: int, monkeypatch: pytest.MonkeyPatch, block: int = 8) -> None:
    monkeypatch.setattr(head_module, "SLICE", tokens)
    monkeypatch.setattr(head_module, "BLOCK", block)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("slice_size", [16, 37, 100, 1000, 16384])
@pytest.mark.parametrize("k", [1, 8, 64])
def test_top_k_equals_the_dense_reference(monkeypatch: pytest.MonkeyPatch, seed: int, slice_size: int, k: int) -> None:
    in_slices_of(slice_size, monkeypatch)
    logits, seen = random_logits(seed, 1003), random_seen(seed, 1003)
    assert_equals_the_dense_reference(topk_of(logits, k, seen), logits, k, seen)


@pytest.mark.parametrize("seed", SEEDS)
def test_top_k_of_a_large_vocabulary(seed: int) -> None:
    logits, seen = random_logits(seed, 40_000), random_seen(seed, 40_000)
    assert_equals_the_dense_reference(topk_of(logits, 64, seen), logits, 64, seen)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("slice_size", [7, 50, 16384])
def test_top_k_of_everything_leaves_an_empty_tail(monkeypatch: pytest.MonkeyPatch, seed: int, slice_size: int) -> None:
    in_slices_of(slice_size, monkeypatch)
    logits, seen = random_logits(seed, 150), random_seen(seed, 150)
    kept = topk_of(logits, 150, seen)
    assert_equals_the_dense_reference(kept, logits, 150, seen)
    assert (kept.tail_logmass == -torch.inf).all()
    assert (kept.tail_logmass_seen == -torch.inf).all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mass", [1e-6, 1e-12, 1e-30])
@pytest.mark.parametrize("where", ["first", "last"])
def test_small_tails_are_as_exact_as_large_ones(
    monkeypatch: pytest.MonkeyPatch, seed: int, mass: float, where: str
) -> None:
    in_slices_of(100, monkeypatch)
    logits, seen = random_logits(seed, 503), random_seen(seed, 503)
    best = torch.arange(8) + (0 if where == "first" else 490)
    others = logits.index_fill(1, best, -torch.inf)
    logits[:, best] = others.logsumexp(1, keepdim=True) - math.log(mass) + torch.rand(8)
    kept = topk_of(logits, 8, seen)
    assert (kept.tail_logmass[:, 1] < math.log(mass)).all()
    assert_equals_the_dense_reference(kept, logits, 8, seen)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("slice_size", [10, 64, 16384])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_ties_go_to_the_lower_id(monkeypatch: pytest.MonkeyPatch, seed: int, slice_size: int, k: int) -> None:
    in_slices_of(slice_size, monkeypatch)
    whole = torch.randint(-2, 3, (20, 300), generator=torch.Generator().manual_seed(seed)).float()
    whole[0] = 0
    seen = random_seen(seed, 300)
    kept = topk_of(whole, k, seen)
    assert kept.ids[0].tolist() == list(range(k))
    assert_equals_the_dense_reference(kept, whole, k, seen)


@settings(deadline=None, max_examples=100)
@given(st.data(), st.integers(1, 24), st.integers(1, 24))
def test_top_k_property(data: st.DataObject, vocab_size: int, slice_size: int) -> None:
    values = st.integers(-10, 10).map(float)
    row = st.lists(values, min_size=vocab_size, max_size=vocab_size)
    logits = torch.tensor(data.draw(st.lists(row, min_size=1, max_size=3)))
    seen = torch.tensor(data.draw(st.lists(st.booleans(), min_size=vocab_size, max_size=vocab_size)))
    k = data.draw(st.integers(1, vocab_size))
    with pytest.MonkeyPatch.context() as patch:
        in_slices_of(slice_size, patch, data.draw(st.integers(1, 12)))
        kept = topk_of(logits, k, seen)
    assert_equals_the_dense_reference(kept, logits, k, seen)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_tail_without_seen_tokens_is_empty(seed: int) -> None:
    logits = random_logits(seed, 500)
    seen = torch.zeros(500, dtype=torch.bool)
    assert (topk_of(logits, 8, seen).tail_logmass_seen == -torch.inf).all()
    seen[logits[0].topk(8).indices] = True
    assert (topk_of(logits[:1], 8, seen).tail_logmass_seen == -torch.inf).all()
    assert_equals_the_dense_reference(topk_of(logits, 8, ~seen), logits, 8, ~seen)


@pytest.mark.parametrize("gap", [20.0, 60.0])
def test_the_seen_tail_is_exact_far_below_the_other_tokens(gap: float) -> None:
    """Its mass is relative to its own largest logit: beside an unseen token `gap` above, it must not vanish."""
    logits, seen = random_logits(0, 500), random_seen(0, 500)
    unseen = int((~seen).nonzero()[0])
    logits[:, unseen] += gap
    logits[:, int(seen.nonzero()[0])] += gap + 20
    assert_equals_the_dense_reference(topk_of(logits, 1, seen), logits, 1, seen)


def test_real_matrices_give_float32_logits_with_bias() -> None:
    """Half-precision weights are raised to float32 before they are multiplied, never the products rounded."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(6, 64, generator=generator).bfloat16()
    head = Head(torch.randn(900, 64, generator=generator).bfloat16(), torch.randn(900, generator=generator).bfloat16())
    logits = features.double() @ head.weight.double().T + head.bias.double()
    seen = random_seen(0, 900)
    kept = keep_topk(features, BlockedHead(head, seen), 16, TEMPERATURES)
    assert_equals_the_dense_reference(kept, logits, 16, seen)


def test_temperatures_come_in_the_order_asked_for() -> None:
    logits, seen = random_logits(0, 300), random_seen(0, 300)
    one, other = (topk_of(logits, 4, seen, temperatures).tail_logmass for temperatures in ((4.0, 0.5), (0.5, 1.0, 4.0)))
    torch.testing.assert_close(one, other[:, [2, 0]], rtol=0, atol=0)
