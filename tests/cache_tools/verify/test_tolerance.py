"""Errors of a second run of the teacher, judged by mean, largest and count."""

import json
import math

import numpy as np
import pytest

from cache_tools.signals import DTYPES, MEASURES, Tolerance
from cache_tools.verify.tolerance import Deviations, Summary, beyond, summarise

TOLERANCES = {name: measure.tolerances for name, measure in MEASURES.items()}


def test_tolerances_grow_with_the_coarseness_of_the_dtype() -> None:
    for name, of_dtype in TOLERANCES.items():
        assert len(of_dtype) == len(DTYPES), name
        assert [t.mean for t in of_dtype] == sorted(t.mean for t in of_dtype), name
        assert [t.largest for t in of_dtype] == sorted(t.largest for t in of_dtype), name
    for built_in, run_in in (("bfloat16", "float32"), ("float32", "bfloat16"), ("bfloat16", "float16")):
        assert Deviations(built_in, "cpu", run_in, "cpu").allowed("kl") == TOLERANCES["kl"][2]
    assert Deviations("float32", "cpu", "float16", "cpu").allowed("kl") == TOLERANCES["kl"][1]


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        ([0.1, 0.3], None),
        ([0.0, 0.0, 0.6], "kl: off by 0.2 on average and 0.6 at most, allowed 0.3 and 0.5"),
        ([0.4, 0.4], "kl: off by 0.4 on average and 0.4 at most, allowed 0.3 and 0.5"),
        ([0.0, math.inf], "kl: off by inf on average and inf at most, allowed 0.3 and 0.5"),
    ],
)
def test_mean_and_largest_error_are_judged(errors: list[float], words: str | None) -> None:
    assert beyond("kl", summarise(np.array(errors)), Tolerance(0.3, 0.5)) == words


def test_of_ids_the_count_is_judged() -> None:
    """Of 10,000 at 1 % 100 may, and four times ten, and one; of two both may, of 200 not all."""
    shares = {name for name, measure in MEASURES.items() if measure.unit == "share"}
    assert shares == {"topk_id", "certain_id", "drawn_id", "certain_key", "drawn_key"}
    for wrong, count, fine in ((141, 10_000, True), (142, 10_000, False), (1, 2, True), (200, 200, False)):
        errors = np.arange(count) < wrong
        assert (beyond("topk_id", summarise(errors.astype(float)), Tolerance(0.01)) is None) is fine
    found = beyond("topk_id", summarise(np.array([1.0] * 200)), Tolerance(0.01))
    assert found == "topk_id: 100.00% of 200 differ, allowed 1.00%"


def test_a_run_keeps_the_worst_of_its_shards() -> None:
    run = Deviations("float32", "cpu", "float32", "cpu")
    assert run.add(2, {"kl": np.array([0.0, 0.0, 0.0]), "drawn_logprob": np.array([])}) == []
    (message,) = run.add(3, {"kl": np.array([0.0, 1.0])})
    assert message.startswith("kl: off by 0.5 on average and 1 at most")
    assert run.add(1, {"kl": np.array([0.0])}) == []
    assert (run.rows, run.shards, set(run.worst)) == (6, 3, {"kl"})
    assert run.worst["kl"] == Summary(count=6, mean=0.5, median=1.0, p99=1.0, largest=1.0)


def test_what_is_infinite_is_no_number_of_json() -> None:
    run = Deviations("float32", "cpu", "float32", "cpu")
    (message,) = run.add(1, {"entropy": np.array([0.0, math.inf])})
    assert message.startswith("entropy: off by inf on average and inf at most")
    found = json.loads(json.dumps(run.facts(), allow_nan=False))
    assert found["worst_shard"]["entropy"]["largest"] is None
