"""Two runs of a teacher compared, in figures worked out by hand."""

import math

import numpy as np
import pytest
from helpers.small_caches import small_recipe
from numpy.typing import NDArray

from cache_tools.signals import UNUSED_POSITION
from cache_tools.teacher.comparison import looked_up
from cache_tools.teacher.signals import errors_of
from cache_tools.teacher.threshold import certain_slots, drawn_bias

Arrays = dict[str, NDArray]
TOPK = small_recipe(top_k=3, temperatures=(1.0, 2.0))
SAMPLED = small_recipe(keep="threshold", top_k=4, temperatures=(1.0,))


def half(*values: float) -> NDArray[np.float16]:
    return np.array(values, dtype=np.float16)


def log(*values: float) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return np.log(np.array(values))


def topk(ids: list[int], kept: list[float], tail: float, seen: float) -> Arrays:
    """One row with one target of these probabilities, and one unused slot; tails at T = 2 are the same figures."""
    arrays = {
        "topk_id": np.array([[ids, [-1] * 3]], dtype=np.int32),
        "topk_logprob": np.array([[log(*kept), [np.nan] * 3]]),
        "tail_logmass": np.array([[log(tail, tail), [np.nan] * 2]]),
        "tail_logmass_seen": np.array([[log(seen, seen), [np.nan] * 2]]),
    }
    return arrays | {"target_position": np.array([[4, UNUSED_POSITION]], dtype=np.uint16), "length": np.array([9])}


def test_equal_runs_are_nowhere_apart() -> None:
    one = topk([7, 3, 5], [0.5, 0.2, 0.1], 0.2, 0.0)
    errors = errors_of(one, one, TOPK)
    assert set(errors) == {"topk_logprob", "tail_logmass", "tail_logmass_seen", "kl", "topk_id"}
    assert {name: set(values.tolist()) for name, values in errors.items()} == {name: {0.0} for name in errors}


def test_values_are_compared_by_token() -> None:
    """Whatever their order. KL of the four buckets 7, 3, 5 and the others."""
    errors = errors_of(topk([7, 3, 5], [0.5, 0.2, 0.1], 0.2, 0.1), topk([3, 7, 5], [0.4, 0.4, 0.1], 0.1, 0.1), TOPK)
    np.testing.assert_allclose(np.sort(errors["topk_logprob"]), np.repeat(log(1, 1.25, 2), 2), atol=1e-12)
    np.testing.assert_allclose(errors["tail_logmass"], log(2, 2))
    np.testing.assert_allclose(errors["tail_logmass_seen"], 0)
    np.testing.assert_allclose(errors["kl"][0], 0.5 * math.log(0.5 / 0.4) + 0.2 * math.log(0.5) + 0.2 * math.log(2))
    assert errors["topk_id"].tolist() == [0, 0, 0]


def test_a_token_of_one_run_only_is_compared_to_the_other_s_last() -> None:
    """5 against 6 at the border is no error; 9 of 0.3, which the other run has below 0.1, is one, and so is 8."""
    near = errors_of(topk([7, 3, 5], [0.5, 0.2, 0.1], 0.2, 0.0), topk([7, 3, 6], [0.5, 0.2, 0.1], 0.2, 0.1), TOPK)
    assert near["topk_logprob"].max() == near["kl"].max() == near["tail_logmass_seen"].max() == 0
    assert near["topk_id"].tolist() == [0, 0, 1]
    far = errors_of(topk([7, 9, 3], [0.4, 0.3, 0.2], 0.1, 0.1), topk([7, 3, 5], [0.4, 0.2, 0.1], 0.3, 0.3), TOPK)
    assert far["topk_logprob"].max() == pytest.approx(math.log(3))
    back = errors_of(topk([7, 3, 5], [0.4, 0.2, 0.1], 0.3, 0.3), topk([7, 9, 3], [0.4, 0.3, 0.2], 0.1, 0.1), TOPK)
    assert back["topk_logprob"].max() == pytest.approx(math.log(3))


def test_the_kl_is_that_at_every_temperature() -> None:
    """At T = 2 a probability counts by its root, beside the tail at that T."""
    one, other = topk([7, 3, 5], [0.49, 0.25, 0.16], 0.1, 0.1), topk([7, 3, 5], [0.25, 0.49, 0.16], 0.1, 0.1)
    p, q = (np.array(values) / 1.7 for values in ([0.7, 0.5, 0.4, 0.1], [0.5, 0.7, 0.4, 0.1]))
    np.testing.assert_allclose(errors_of(one, other, TOPK)["kl"][1], (p * np.log(p / q)).sum())


def test_what_is_no_number_is_infinitely_far_off() -> None:
    one, other = topk([7, 3, 5], [0.5, 0.2, 0.1], 0.2, 0.1), topk([7, 3, 5], [0.5, 0.2, 0.1], 0.2, 0.1)
    one["topk_logprob"][0, 0, 1] = np.nan
    one["tail_logmass"][0, 0, 0] = -np.inf
    errors = errors_of(one, other, TOPK)
    assert errors["topk_logprob"].max() == errors["tail_logmass"].max() == np.inf
    assert errors["tail_logmass"][1] == 0


def sample(ids: list[int], weights: list[float], entropy: float) -> Arrays:
    """One row with one target; the weights are probabilities."""
    return {
        "sample_id": np.array([[[ids]]], dtype=np.int32),
        "sample_logweight": log(*weights)[None, None, None].astype(np.float16),
        "entropy": np.array([[[entropy]]], dtype=np.float32),
        "entropy_seen": np.array([[[entropy]]], dtype=np.float32),
        "sample_logprob": np.full((1, 1, 1, 4), math.log(0.05), dtype=np.float32),
        "target_position": np.array([[4]], dtype=np.uint16),
        "length": np.array([9]),
    }


def test_certain_tokens_are_told_from_drawn_ones() -> None:
    """τ is 1/4. Where the best token lies below, it alone is certain, and the others stand for more."""
    values = np.stack([half(*log(0.5, 0.3, 0.25, 0.25)), half(*log(0.24, 0.253, 0.253, 0.253)), half(*log(1, 0, 0, 0))])
    assert certain_slots(values.astype(float), 4).tolist() == [
        [True, True, False, False],
        [True, False, False, False],
        [True, False, False, False],
    ]


def test_samples_are_compared_where_they_are_certain() -> None:
    """7 of 0.5 and 3 of 0.3 are, and of the drawn 9 and 11 the other run has 11."""
    one, other = (
        sample([7, 3, 9, 11], [0.5, 0.3, 0.25, 0.25], 1.0),
        sample([7, 4, 11, 13], [0.45, 0.26, 0.25, 0.25], 1.5),
    )
    errors = errors_of(one, other, SAMPLED)
    expected = [math.log(0.5 / 0.45), math.log(0.3 / 0.25), math.log(0.5 / 0.45), math.log(0.26 / 0.25)]
    np.testing.assert_allclose(errors["sample_logweight"], expected, atol=2e-3)
    assert errors["certain_id"].tolist() == [0, 1]
    assert errors["drawn_id"].tolist() == [1, 0]
    assert errors["entropy"].tolist() == errors["entropy_seen"].tolist() == [0.5]
    kl = 0.5 * math.log(0.5 / 0.45) + 0.5 * math.log(0.5 / 0.55)
    np.testing.assert_allclose(errors["kl"], kl, rtol=0.01)


def test_drawn_tokens_are_unbiased_on_average() -> None:
    """A certain token of 1/2 beside 2⁸ tokens of 2⁻⁹ each: entropy ½ log 2 + ½ log 2⁹."""
    targets = 100
    entropy, certain = np.full(targets, 5 * math.log(2)), np.full((targets, 4), -np.inf)
    certain[:, 0] = math.log(0.5)
    drawn = np.zeros((targets, 4), dtype=bool)
    drawn[:, 1:3] = True
    right = np.full((targets, 4), -9 * math.log(2))
    assert drawn_bias(right, drawn, entropy, certain) == 0
    error = 6 * 2 / math.sqrt(2 * targets)
    np.testing.assert_allclose(drawn_bias(right - 3, drawn, entropy, certain), 3 - error)
    np.testing.assert_allclose(drawn_bias(right + 3, drawn, entropy, certain), 3 - error)
    assert drawn_bias(right, np.zeros_like(drawn), entropy, certain).size == 0


def test_attention_is_compared_key_by_key() -> None:
    """Roots of certain weights in both directions; a key that only one run keeps lay below 1/k in the other."""
    recipe = small_recipe(attention_queries=16, attention_keys=4, attention_layers=(1,))
    none = recipe.seq_len
    stored = {"attention_gap": [[0, 1, 2, none], [3, 0, 0, 0]], "attention_weight": [[127, 0, 254, 0], [0, 0, 0, 0]]}
    found = {"attention_gap": [[0, 2, 1, none], [3, 0, 0, 0]], "attention_weight": [[254, 0, 0, 0], [0, 0, 0, 0]]}
    stored, found = ({n: np.array(a).reshape(2, 1, 1, 4) for n, a in run.items()} for run in (stored, found))
    stored["target_position"] = np.full((2, 1), UNUSED_POSITION, dtype=np.uint16)
    errors = errors_of(stored, found, recipe)
    assert set(errors) == {"attention_weight", "certain_key", "drawn_key"}
    assert errors["attention_weight"].tolist() == [0.5, 0.5, 0.5]  # key 0 twice, then 1.0 against at most √(1/4)
    assert errors["certain_key"].tolist() == [0, 1]
    assert errors["drawn_key"].tolist() == [1, 0, 0, 0, 0]


def test_ids_are_looked_up_target_by_target() -> None:
    ids, among = np.array([[5, 3, -1], [5, 3, 2]], dtype=np.int32), np.array([[3, 9, -1], [2, 5, -1]], dtype=np.int32)
    found = looked_up(ids, among, np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    np.testing.assert_array_equal(found, [[np.nan, 1.0, np.nan], [5.0, np.nan, 4.0]])
