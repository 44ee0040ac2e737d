"""The threshold sample against its mathematics: exactly k, all that is heavy, unbiased, whatever the distribution."""

import numpy as np
import pytest
import torch
from dense import (
    SEEDS,
    TEMPERATURES,
    TOLERANCE,
    assert_tails_are_the_others,
    exact_head,
    random_logits,
    random_seen,
    threshold_sample,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cache_tools.rows import threshold_offsets
from cache_tools.teacher import head as head_module
from cache_tools.teacher.head import BlockedHead
from cache_tools.teacher.threshold import keep_threshold_sample


def peaked(rest: float, vocab_size: int = 1000, seed: int = 0) -> Tensor:
    """[1, V] float64 probabilities: one token has 1 − `rest`, the others share the rest unevenly."""
    others = random_logits(seed, vocab_size - 1, 1).double().softmax(1) * rest
    return torch.cat(
        [others[:, : vocab_size // 2], torch.tensor([[1 - rest]], dtype=torch.float64), others[:, vocab_size // 2 :]], 1
    )


def grid(steps: int) -> Tensor:
    return torch.arange(steps, dtype=torch.float64) / steps


def distributions() -> dict[str, Tensor]:
    flat = torch.full((1, 400), 1 / 400, dtype=torch.float64)
    few = torch.tensor([[0.1] * 10 + [1e-14] * 300], dtype=torch.float64)
    return {
        "random": random_logits(0, 1000, 1).double().softmax(1),
        "steep": (random_logits(1, 1000, 1) * 4).double().softmax(1),
        "uniform": flat,
        "ten equal ones": few / few.sum(),
        "peaked 1e-6": peaked(1e-6),
        "peaked 1e-12": peaked(1e-12),
    }


@pytest.mark.parametrize("name", distributions())
@pytest.mark.parametrize("k", [1, 2, 16, 64])
def test_threshold_sample_keeps_exactly_k_and_all_that_reach_the_threshold(name: str, k: int) -> None:
    probability = distributions()[name]
    offsets = grid(256)
    ids, threshold = threshold_sample(probability.expand(256, -1), k, offsets)
    assert ids.shape == (256, k)
    assert (ids.diff(dim=1) > 0).all()
    assert (threshold == threshold[0]).all()
    tau = float(threshold[0])
    assert float((probability / tau).clamp(max=1).sum()) == pytest.approx(k, rel=1e-6)  # what defines τ
    certain = (probability[0] > tau * (1 + 1e-9)).nonzero()[:, 0].tolist()
    assert all(set(certain) <= set(row) for row in ids.tolist())
    weights = probability.expand(256, -1).gather(1, ids).clamp(min=tau)
    torch.testing.assert_close(weights.sum(1), torch.ones(256, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", distributions())
@pytest.mark.parametrize("k", [1, 16, 64])
def test_threshold_sample_is_unbiased(name: str, k: int) -> None:
    """Over a fine grid of offsets the weights average to the distribution, and at T = 2 to the softened one."""
    probability, steps = distributions()[name], 2048
    ids, threshold = threshold_sample(probability.expand(steps, -1), k, grid(steps))
    tau = float(threshold[0])
    often = torch.bincount(ids.flatten(), minlength=probability.shape[1]) / steps
    inclusion = (probability[0] / tau).clamp(max=1)
    # Each light token is an interval of length p/τ on the circle of offsets, so a grid is off by two points at most.
    assert float((often - inclusion).abs().max()) <= 2 / steps
    torch.testing.assert_close(often * probability[0].clamp(min=tau), probability[0], rtol=0, atol=2 * tau / steps)
    softened = (probability[0].log() / 2).softmax(0)
    allowed = 2 / steps * softened / inclusion
    assert ((often * softened / inclusion - softened).abs() <= allowed * (1 + 1e-6)).all()


@pytest.mark.parametrize("rest", [1e-9, 1e-12, 1e-15, 1e-18, 1e-25, 1e-40])
@pytest.mark.parametrize("seed", SEEDS)
def test_threshold_sample_of_a_certain_teacher(rest: float, seed: int) -> None:
    """τ comes from the light tokens' own mass: 1 − the heavy ones would be rounding noise."""
    probability, k = peaked(rest, 2000, seed), 16
    ids, threshold = threshold_sample(probability.expand(64, -1), k, grid(64))
    assert all(1000 in row for row in ids.tolist())
    tau = float(threshold[0])
    assert float((probability / tau).clamp(max=1).sum()) == pytest.approx(k, rel=1e-6)


@pytest.mark.parametrize("step", [1.0, 5.0, 20.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_threshold_sample_of_tied_and_steep_integer_logits(step: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(30):
        k = int(torch.randint(1, 65, (1,), generator=generator))
        logits = torch.randint(-3, 4, (1, k + 100), generator=generator).double() * step
        ids, _ = threshold_sample(logits.softmax(1).expand(8, -1), k, grid(8))
        assert ids.shape == (8, k)
        assert (ids.diff(dim=1) > 0).all()


@pytest.mark.parametrize("k", [1, 3, 9, 12, 30, 63])
@pytest.mark.parametrize("offset", [0.0, 2.0**-32, 0.5, 1 - 2.0**-32])
def test_threshold_sample_of_exactly_k_equal_tokens(k: int, offset: float) -> None:
    """Then every step along the vocabulary is a whole number, up to rounding."""
    probability = torch.full((1, k + 5), 1e-300, dtype=torch.float64)
    probability[:, :k] = 1 / k
    ids, _ = threshold_sample(probability, k, torch.tensor([offset], dtype=torch.float64))
    assert ids.tolist() == [list(range(k))]


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.floats(1e-9, 1.0), min_size=3, max_size=60),
    st.data(),
    st.integers(0, 2**32 - 1),
)
def test_threshold_sample_property(weights: list[float], data: st.DataObject, numerator: int) -> None:
    k = data.draw(st.integers(1, len(weights) - 1))
    probability = torch.tensor([weights], dtype=torch.float64)
    probability /= probability.sum()
    ids, threshold = threshold_sample(probability, k, torch.tensor([numerator * 2.0**-32], dtype=torch.float64))
    assert ids.shape == (1, k)
    kept = probability.gather(1, ids)
    assert float(kept.clamp(min=float(threshold)).sum()) == pytest.approx(1, abs=1e-9)
    left_out = probability.scatter(1, ids, 0.0)
    assert float(left_out.max()) <= float(threshold) * (1 + 1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_kept_threshold_sample_is_ordered_and_leaves_exact_tails(seed: int) -> None:
    """More targets than are computed at a time, and each as if it were alone."""
    logits, seen = random_logits(seed, 700, 130), random_seen(seed, 700)
    features, head = exact_head(logits)
    blocked = BlockedHead(head, seen)
    offset = (torch.rand(130, generator=torch.Generator().manual_seed(seed)) * 2**32).floor().double() * 2.0**-32
    kept = keep_threshold_sample(features, blocked, 24, TEMPERATURES, offset)
    logprob = logits.double().log_softmax(1)
    assert kept.threshold is not None
    assert kept.threshold.dtype == torch.float32
    assert all(len(set(row)) == 24 for row in kept.ids.tolist())
    torch.testing.assert_close(kept.logprob.double(), logprob.gather(1, kept.ids), rtol=0, atol=TOLERANCE)
    assert (kept.logprob.diff(dim=1) <= 0).all()
    assert_tails_are_the_others(kept, logprob, seen, TEMPERATURES)
    weights = kept.logprob.exp().clamp(min=kept.threshold[:, None])
    torch.testing.assert_close(weights.sum(1), torch.ones(130), rtol=0, atol=1e-5)
    for target in (0, 63, 64, 129):
        alone = keep_threshold_sample(
            features[target : target + 1], blocked, 24, TEMPERATURES, offset[target : target + 1]
        )
        assert alone.ids.tolist() == kept.ids[target : target + 1].tolist()


def test_equal_tokens_of_a_threshold_sample_stand_in_order_of_id() -> None:
    features, head = exact_head(torch.zeros(1, 50))
    blocked = BlockedHead(head, torch.ones(50).bool())
    kept = keep_threshold_sample(features, blocked, 7, (1.0,), torch.tensor([0.3]).double())
    assert kept.ids[0].tolist() == sorted(kept.ids[0].tolist())


def test_a_threshold_sample_of_the_whole_vocabulary_is_refused() -> None:
    features, head = exact_head(torch.zeros(1, 5))
    with pytest.raises(ValueError, match="a threshold sample of 5 from 5 tokens is not a sample"):
        keep_threshold_sample(features, BlockedHead(head, torch.ones(5).bool()), 5, (1.0,), torch.zeros(1).double())


def test_mean_over_the_stored_offsets_is_the_distribution() -> None:
    """With the very offsets that a build uses, over many rows, the sample has no drift."""
    keys, positions = np.arange(250, dtype=np.uint64), np.tile(np.arange(1, 21, dtype=np.uint16), (250, 1))
    offset = torch.from_numpy(threshold_offsets(keys, positions, 0).ravel())
    probability = random_logits(3, 200, 1).double().softmax(1)
    ids, threshold = threshold_sample(probability.expand(len(offset), -1), 8, offset)
    often = torch.bincount(ids.flatten(), minlength=200) / len(offset)
    inclusion = (probability[0] / threshold[0]).clamp(max=1)
    spread = (inclusion * (1 - inclusion) / len(offset)).sqrt()
    assert ((often - inclusion).abs() <= 5 * spread + 1e-12).all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("block", [1, 3, 16, 64])
@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_blocks_give_the_sample_of_the_definition(
    monkeypatch: pytest.MonkeyPatch, seed: int, block: int, spread: float
) -> None:
    """The running sum over block sums and then inside a few blocks draws what one sum over the vocabulary draws."""
    monkeypatch.setattr(head_module, "BLOCK", block)
    logits, seen = random_logits(seed, 300, 40) * spread, random_seen(seed, 300)
    features, head = exact_head(logits)
    offset = grid(40) + 2.0**-32
    blocked = BlockedHead(head, seen)
    kept = keep_threshold_sample(features, blocked, 20, TEMPERATURES, offset)
    order = blocked.ids.flatten()[blocked.ids.flatten() < 300].long()
    ids, threshold = threshold_sample(logits.double().softmax(1)[:, order], 20, offset)
    assert kept.threshold is not None
    torch.testing.assert_close(kept.threshold.double(), threshold, rtol=2e-5, atol=0)
    differing = (kept.ids.sort(1).values != order[ids].sort(1).values).any(1).sum()
    assert differing <= 1  # a draw that falls on the edge of a token, in float32


@pytest.mark.parametrize("keep", [2, 7, 63])
@pytest.mark.parametrize("rest", [1e-6, 1e-15, 1e-30])
def test_a_sample_in_blocks_of_a_certain_teacher(monkeypatch: pytest.MonkeyPatch, keep: int, rest: float) -> None:
    monkeypatch.setattr(head_module, "BLOCK", 16)
    logits = peaked(rest, 2000).log().float().expand(32, -1).contiguous()
    features, head = exact_head(logits)
    seen = random_seen(0, 2000)
    kept = keep_threshold_sample(features, BlockedHead(head, seen), keep, TEMPERATURES, grid(32))
    assert kept.threshold is not None
    assert (kept.ids[:, 0] == 1000).all()
    assert all(len(set(row)) == keep for row in kept.ids.tolist())
    tau = kept.threshold.double()[:, None]
    inclusion = (logits.double().exp() / tau).clamp(max=1).sum(1)
    torch.testing.assert_close(inclusion, torch.full((32,), float(keep), dtype=torch.float64), rtol=1e-4, atol=0)
    assert_tails_are_the_others(kept, logits.double().log_softmax(1), seen, TEMPERATURES)


def test_blocks_of_a_threshold_sample_are_unbiased() -> None:
    logits, steps = random_logits(5, 500, 1), 4096
    features, head = exact_head(logits)
    blocked = BlockedHead(head, random_seen(5, 500))
    kept = keep_threshold_sample(features.expand(steps, -1), blocked, 16, (1.0,), grid(steps))
    assert kept.threshold is not None
    often = torch.bincount(kept.ids.flatten(), minlength=500) / steps
    inclusion = (logits[0].double().softmax(0) / kept.threshold[0].double()).clamp(max=1)
    assert float((often - inclusion).abs().max()) <= 3 / steps
