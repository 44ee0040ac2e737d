"""Schedules of weights and temperatures, at their ends and between."""

import pytest

from comet.train.objective import Schedule, Steps, at, described, is_used, temperatures_of


def test_a_number_stays_what_it_is() -> None:
    assert [at(0.3, progress) for progress in (0.0, 0.5, 1.0)] == [0.3] * 3
    assert (is_used(0.3), is_used(0.0), temperatures_of(2.0), described(0.3)) == (True, False, (2.0,), "0.3")
    assert described(None) == "default"


def test_linear_and_cosine_meet_at_the_ends_and_in_the_middle() -> None:
    linear, cosine = Schedule(1.0, 0.2), Schedule(1.0, 0.2, "cosine")
    assert [at(linear, p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([1.0, 0.8, 0.6, 0.2])
    assert [at(cosine, p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([1.0, 0.882843, 0.6, 0.2])
    assert described(cosine) == "1 to 0.2 (cosine)"


def test_a_weight_that_is_ever_above_zero_is_used() -> None:
    assert is_used(Schedule(0.0, 1.0)) and is_used(Schedule(1.0, 0.0)) and not is_used(Schedule(0.0, 0.0))


def test_a_temperature_steps_at_its_shares_of_the_training() -> None:
    steps = Steps(((0.0, 2.0), (0.5, 1.0)))
    assert [at(steps, p) for p in (0.0, 0.4999, 0.5, 1.0)] == [2.0, 2.0, 1.0, 1.0]
    assert temperatures_of(steps) == (2.0, 1.0)
    assert described(steps) == "2, then 1 from 50% on"


@pytest.mark.parametrize("weights", [(-1.0, 1.0), (1.0, float("nan")), (float("inf"), 0.0)])
def test_weights_that_cannot_be(weights: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="expected a number from 0 on"):
        Schedule(*weights)


def test_a_shape_that_is_none() -> None:
    with pytest.raises(ValueError, match="shape 'step': expected linear or cosine"):
        Schedule(1.0, 0.0, "step")


@pytest.mark.parametrize("begins", [(), (0.1,), (0.0, 0.5, 0.5), (0.0, 0.6, 0.5), (0.0, 1.0)])
def test_steps_that_do_not_rise_from_zero(begins: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="expected rising shares of the training, 0 first, below 1"):
        Steps(tuple((begin, 1.0) for begin in begins))


def test_a_temperature_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="temperature 0: expected a number above 0"):
        Steps(((0.0, 0),))
