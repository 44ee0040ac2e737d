"""Values that no student may learn from are refused when they are read, at the place where they are."""

from collections.abc import Callable

import numpy as np
import pytest
from helpers.small_caches import random_shard, small_recipe
from numpy.typing import NDArray

from cache_tools.errors import CometError
from cache_tools.store.bounds import check_ranges, check_signals, is_logprob, repeated
from cache_tools.store.recipe import Recipe

TOPK, SAMPLED = small_recipe(), small_recipe(keep="threshold")
Arrays = dict[str, NDArray]


@pytest.mark.parametrize("recipe", [TOPK, SAMPLED], ids=["topk", "threshold"])
def test_sound_shards_pass(recipe: Recipe) -> None:
    arrays = random_shard(recipe, "train", 0)
    check_ranges(arrays, recipe, "here")
    check_signals(arrays, "here")
    check_signals({name: arrays[name] for name in ("target_position", "target_id")}, "here")


def put(name: str, index: tuple[int, ...], value: float) -> Callable[[Arrays], object]:
    return lambda arrays: arrays[name].__setitem__(index, value)


@pytest.mark.parametrize(
    ("keep", "change", "message"),
    [
        ("topk", put("target_position", (1, 2), 1), "target_position: expected rising positions, found another"),
        ("topk", put("target_id", (1, 2), -1), "target_id: expected a token, found none"),
        ("topk", put("topk_id", (1, 2, 3), -1), "topk_id: expected different tokens, found one twice or none"),
        ("topk", lambda a: put("topk_id", (1, 2, 3), a["topk_id"][1, 2, 0])(a), "topk_id: expected different tokens"),
        *(
            ("topk", put("topk_logprob", (1, 2, 3), value), "topk_logprob: expected finite log-probabilities")
            for value in (np.nan, -np.nan, np.inf, -np.inf, 0.01)
        ),
        *(("topk", put("tail_logmass", (1, 2, 1), value), "tail_logmass: expected a") for value in (np.nan, np.inf)),
        *(("topk", put("tail_logmass_seen", (1, 2, 1), v), "tail_logmass_seen: expected a") for v in (np.nan, np.inf)),
        ("threshold", put("sample_id", (1, 2, 1, 3), -1), "sample_id: expected different tokens, each with a weight"),
        ("threshold", put("sample_logweight", (1, 2, 1, 3), -np.inf), "sample_id: expected different tokens, each"),
        ("threshold", lambda a: put("sample_id", (1, 2, 1, 3), a["sample_id"][1, 2, 1, 0])(a), "sample_id: expected"),
        *(
            ("threshold", put("sample_logweight", (1, 2, 1, 3), value), "sample_logweight: expected log weights")
            for value in (np.nan, np.inf, 10)
        ),
        *(("threshold", put("entropy", (1, 2, 1), v), "entropy: expected a finite number") for v in (np.nan, np.inf)),
        *(("threshold", put("entropy_seen", (1, 2, 1), v), "entropy_seen: expected a") for v in (np.nan, -np.inf)),
    ],
)
def test_a_value_that_no_loss_may_be_made_of(keep: str, change: Callable[[Arrays], object], message: str) -> None:
    arrays = random_shard(TOPK if keep == "topk" else SAMPLED, "train", 0)
    change(arrays)
    with pytest.raises(CometError, match=rf"^here: {message}.* at row 1, target 2; the cache is damaged$"):
        check_signals(arrays, "here")


def test_slots_without_a_target_may_hold_anything() -> None:
    arrays = random_shard(SAMPLED, "train", 0)
    assert arrays["target_position"][0, 2] == 65535
    arrays["sample_id"][0, 2], arrays["sample_logweight"][0, 2], arrays["entropy"][0, 2] = 7, np.inf, np.inf
    check_signals(arrays, "here")


def test_log_probabilities_by_their_bits() -> None:
    """All 65,536 values of float16."""
    values = np.arange(2**16, dtype=np.uint16).view(np.float16)
    with np.errstate(invalid="ignore"):
        expected = np.isfinite(values) & (values.astype(np.float64) <= float(np.float16(2e-3)))
    np.testing.assert_array_equal(is_logprob(values), expected)


def test_repeated_tokens() -> None:
    ids = np.array([[3, 1, 2], [3, 1, 3], [-1, 5, -1], [0, 0, 1]], dtype=np.int32)
    assert repeated(ids).tolist() == [False, True, False, True]
