"""The threshold sample against its definition: all that is heavy, no bias, whatever distribution and temperature."""

import math

import numpy as np
import pytest
import torch
from helpers.dense import SEEDS, TEMPERATURES, entropies, exact_head, random_logits, random_seen, threshold_sample
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cache_tools.teacher import head as head_module
from cache_tools.teacher.head import BlockedHead
from cache_tools.teacher.threshold import ThresholdSample, keep_threshold_sample
from cache_tools.text.draws import threshold_offsets

VOCABULARY = 400


def peaked(rest: float, vocab_size: int = VOCABULARY, seed: int = 0) -> Tensor:
    """[1, V] float64 probabilities: the token in the middle has 1 − `rest`, the others share the rest unevenly."""
    others = random_logits(seed, vocab_size - 1, 1).double().softmax(1) * rest
    middle = torch.tensor([[1 - rest]], dtype=torch.float64)
    return torch.cat([others[:, : vocab_size // 2], middle, others[:, vocab_size // 2 :]], 1)


def grid(steps: int) -> Tensor:
    return torch.arange(steps, dtype=torch.float64) / steps


def distributions() -> dict[str, Tensor]:
    few = torch.tensor([[0.1] * 10 + [1e-14] * (VOCABULARY - 10)], dtype=torch.float64)
    return {
        "random": random_logits(0, VOCABULARY, 1).double().softmax(1),
        "steep": (random_logits(1, VOCABULARY, 1) * 4).double().softmax(1),
        "nearly uniform": (random_logits(2, VOCABULARY, 1) * 0.01).double().softmax(1),
        "ten equal ones": few / few.sum(),
        "peaked 1e-6": peaked(1e-6),
        "peaked 1e-30": peaked(1e-30),
    }


def sample_of(
    logits: Tensor, k: int, offset: Tensor, temperatures: tuple[float, ...] = (1.0,), seen: Tensor | None = None
) -> ThresholdSample:
    """Of these [T, V] logits; without `seen` all tokens lie in blocks by rising id, as in the definition."""
    features, head = exact_head(logits)
    seen = torch.ones(logits.shape[1]).bool() if seen is None else seen
    return keep_threshold_sample(features, BlockedHead(head, seen), k, temperatures, offset)


def weights_of(sample: ThresholdSample, vocab_size: int = VOCABULARY, temperature: int = 0) -> Tensor:
    """[T, V] what every token stands for."""
    ids, logweight = sample.ids[:, temperature], sample.logweight[:, temperature].double()
    weights = torch.zeros(len(ids), vocab_size + 1, dtype=torch.float64)
    return weights.scatter_(1, ids.where(ids >= 0, vocab_size), logweight.exp())[:, :-1]


@pytest.mark.parametrize("name", distributions())
@pytest.mark.parametrize("k", [2, 7, 64])
@pytest.mark.parametrize("block", [1, 3, 32])
def test_the_sample_is_that_of_the_definition(monkeypatch: pytest.MonkeyPatch, name: str, k: int, block: int) -> None:
    """The running sum over block sums and then inside a few blocks draws what one sum over the vocabulary draws."""
    monkeypatch.setattr(head_module, "BLOCK", block)
    probability, offsets = distributions()[name], grid(64) + 2.0**-32
    found = weights_of(sample_of(probability.log().float().expand(64, -1).contiguous(), k, offsets))
    differing = 0
    for weights, offset in zip(found, offsets.tolist(), strict=True):
        expected = threshold_sample(probability[0], k, offset)
        assert len(expected) <= k
        if set(weights.nonzero()[:, 0].tolist()) != set(expected):
            differing += 1  # a draw on the edge of a token, in float32
        else:
            values = torch.tensor([expected[token] for token in sorted(expected)], dtype=torch.float64)
            torch.testing.assert_close(weights[weights > 0], values, rtol=1e-4, atol=0)
    assert differing <= 3


@pytest.mark.parametrize("name", distributions())
@pytest.mark.parametrize("k", [2, 16, 64])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_sample_is_unbiased(name: str, k: int, temperature: float) -> None:
    """Over a fine grid of offsets what the tokens stand for averages to the distribution."""
    logits, steps = distributions()[name].log().float(), 1024
    sample = sample_of(logits.expand(steps, -1).contiguous(), k, grid(steps), (temperature,))
    weights = weights_of(sample)
    mean, largest = weights.mean(0), float(weights.max())
    expected = (logits[0].double() / temperature).softmax(0)
    # Each light token is an interval of length p/τ on the circle of offsets, so a grid is off by two points at most.
    allowed = torch.where(expected >= 1 / k, 1e-5, 2.5 * largest / steps)
    assert ((mean - expected).abs() <= allowed).all()


@pytest.mark.parametrize("name", distributions())
@pytest.mark.parametrize("k", [2, 16, 64])
def test_the_best_comes_first_then_the_certain_then_the_drawn(name: str, k: int) -> None:
    probability = distributions()[name]
    sample = sample_of(probability.log().float().expand(256, -1).contiguous(), k, grid(256))
    ids, logweight = sample.ids[:, 0], sample.logweight[:, 0]
    assert (ids[:, 0] == probability.argmax()).all()
    assert ((ids < 0) == (logweight == -torch.inf)).all()
    certain = int((probability >= 1 / k).sum()) or 1
    assert (logweight[:, :certain].diff(dim=1) <= 0).all()
    for row, weights in zip(ids[:, certain:], logweight[:, certain:], strict=True):
        drawn = row[row >= 0]
        assert (drawn.diff() > 0).all()
        assert (row[len(drawn) :] == -1).all(), "unused slots come last"
        assert weights[: len(drawn)].unique().numel() <= 1


def test_below_the_threshold_the_best_is_kept_and_the_rest_drawn() -> None:
    logits = torch.zeros(1, 1000)
    logits[0, 500] = 1.0
    probability = logits.double().softmax(1)
    sample = sample_of(logits.expand(100, -1).contiguous(), 16, grid(100))
    weights = weights_of(sample, 1000)
    assert ((sample.ids >= 0).sum(2) == 16).all(), "one for certain, fifteen draws"
    best = float(probability[0, 500])
    torch.testing.assert_close(weights[:, 500], torch.full((100,), best).double(), rtol=1e-5, atol=0)
    others = weights.index_fill(1, torch.tensor([500]), 0.0)
    spacing = (1 - best) / 15
    torch.testing.assert_close(others[others > 0], torch.full((1500,), spacing).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("tokens", "k"), [(47, 16), (68, 8), (103, 8), (110, 64)])
def test_below_the_threshold_rounding_loses_no_draw_at_an_offset_of_0(tokens: int, k: int) -> None:
    """The rest divided by a part of it is a little less than the number of parts."""
    sample = sample_of(torch.zeros(1, tokens), k, torch.zeros(1, dtype=torch.float64))
    assert (sample.ids >= 0).sum() == k
    assert float(weights_of(sample, tokens).sum()) == pytest.approx(1, abs=1e-5)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.floats(1e-9, 1.0), min_size=3, max_size=60), st.data(), st.integers(0, 2**32 - 1), st.integers(0, 99)
)
def test_at_most_k_tokens_and_all_that_is_heavy(
    numbers: list[float], data: st.DataObject, numerator: int, seed: int
) -> None:
    k = data.draw(st.integers(2, len(numbers)))
    logits = torch.tensor([numbers]).log()
    seen = random_seen(seed, len(numbers))
    sample = sample_of(logits, k, torch.tensor([numerator * 2.0**-32], dtype=torch.float64), (1.0,), seen)
    weights, probability = weights_of(sample, len(numbers))[0], logits[0].double().softmax(0)
    assert not weights.isnan().any()
    heavy = probability >= 1 / k * (1 + 1e-5)
    torch.testing.assert_close(weights[heavy], probability[heavy], rtol=1e-5, atol=0)
    assert weights[probability.argmax()] > 0
    # a whole number of draws, each standing for τ, lies within one τ of the light mass
    assert abs(float(weights.sum()) - 1) <= 1 / (k - 1) + 1e-5


@pytest.mark.parametrize("step", [1.0, 5.0, 20.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_tied_and_steep_integer_logits(step: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(30):
        k = int(torch.randint(2, 65, (1,), generator=generator))
        logits = torch.randint(-3, 4, (8, k + 100), generator=generator).float() * step
        sample = sample_of(logits, k, grid(8), TEMPERATURES)
        assert not sample.logweight.isnan().any()
        for ids in sample.ids.flatten(0, 1):
            assert len(ids[ids >= 0].unique()) == (ids >= 0).sum()


@pytest.mark.parametrize("k", [2, 3, 9, 12, 30, 63])
@pytest.mark.parametrize("offset", [0.0, 2.0**-32, 0.5, 1 - 2.0**-32])
def test_exactly_k_equal_tokens(k: int, offset: float) -> None:
    """Then every token reaches the threshold, up to rounding, and no slot is left."""
    logits = torch.full((1, k + 5), -200.0)
    logits[:, 2 : k + 2] = 0.0
    sample = sample_of(logits, k, torch.tensor([offset], dtype=torch.float64))
    assert sorted(sample.ids[0, 0].tolist()) == list(range(2, k + 2))
    torch.testing.assert_close(sample.logweight, torch.full((1, 1, k), -math.log(k)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("seen_share", [0.0, 0.3, 1.0])
def test_entropies_equal_the_dense_ones(seed: int, scale: float, seen_share: float) -> None:
    logits = random_logits(seed, 700, 40) * scale
    seen = torch.rand(700, generator=torch.Generator().manual_seed(seed)) < seen_share
    sample = sample_of(logits, 8, torch.zeros(40).double(), TEMPERATURES, seen)
    for index, temperature in enumerate(TEMPERATURES):
        probability = (logits.double() / temperature).softmax(1)
        for found, expected in zip((sample.entropy, sample.entropy_seen), entropies(probability, seen), strict=True):
            assert found.dtype == torch.float32
            torch.testing.assert_close(found[:, index].double(), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_many_targets_give_what_each_gives_alone(seed: int) -> None:
    """More targets than are computed at a time, at several temperatures, seen and other tokens apart."""
    logits, seen = random_logits(seed, 700, 130), random_seen(seed, 700)
    offset = (torch.rand(130, generator=torch.Generator().manual_seed(seed)) * 2**32).floor().double() * 2.0**-32
    features, head = exact_head(logits)
    blocked = BlockedHead(head, seen)
    together = keep_threshold_sample(features, blocked, 24, TEMPERATURES, offset)
    for target in (0, 63, 64, 129):
        one = slice(target, target + 1)
        alone = keep_threshold_sample(features[one], blocked, 24, TEMPERATURES, offset[one])
        assert alone.ids.tolist() == together.ids[one].tolist()
        torch.testing.assert_close(alone.logweight, together.logweight[one])


def test_tokens_of_the_corpus_are_drawn_before_the_others() -> None:
    """The running sum goes over the corpus's ids first, as FORMAT.md says."""
    logits, seen = random_logits(4, 300, 1), random_seen(4, 300)
    offset = 0.3
    sample = sample_of(logits, 20, torch.tensor([offset], dtype=torch.float64), (1.0,), seen)
    order = torch.cat([seen.nonzero()[:, 0], (~seen).nonzero()[:, 0]])
    expected = threshold_sample(logits[0].double().softmax(0)[order], 20, offset)
    ids = sample.ids[0, 0]
    assert set(ids[ids >= 0].tolist()) == {int(order[place]) for place in expected}


def test_a_sample_of_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match="a threshold sample of 1: expected at least 2 tokens"):
        sample_of(torch.zeros(1, 5), 1, torch.zeros(1).double())


def test_mean_over_the_stored_offsets_is_the_distribution() -> None:
    """With the very offsets that a build uses, over many rows, the sample has no drift."""
    keys, positions = np.arange(1500, dtype=np.uint64), np.tile(np.arange(1, 21, dtype=np.uint16), (1500, 1))
    offset = torch.from_numpy(threshold_offsets(keys, positions, 0).ravel())
    logits, k = random_logits(3, 200, 1), 8
    probability = logits[0].double().softmax(0)
    weights = [weights_of(sample_of(logits.repeat(len(few), 1), k, few), 200) for few in offset.split(500)]
    mean = torch.cat(weights).mean(0)
    inclusion = (probability * k).clamp(max=1)
    spread = (inclusion * (1 - inclusion) / len(offset)).sqrt() / k
    assert ((mean - probability).abs() <= 5 * spread + 1e-5 * probability).all()
