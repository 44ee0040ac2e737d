"""Objectives, and their schedules of weights and temperatures."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from cache_tools.errors import CometError
from comet.preparation import default_epochs, peak_learning_rate
from comet.settings import StudentConfig
from comet.student.family import StudentShape
from comet.train.losses import ATTENTION_LOSSES
from comet.train.objective import (
    CHOICES,
    DEFAULT,
    PAPER,
    Objective,
    Schedule,
    Steps,
    at,
    described,
    is_used,
    temperatures_of,
)
from comet.train.signals import ThresholdTargets, TopkTargets


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
    with pytest.raises(CometError, match=r"^(start|end) \S+: expected a number from 0, up to 1e\+09$"):
        Schedule(*weights)


def test_a_shape_that_is_none() -> None:
    with pytest.raises(CometError, match=r"^shape step: expected linear, cosine$"):
        Schedule(1.0, 0.0, "step")


@pytest.mark.parametrize("begins", [(0.1,), (0.0, 0.5, 0.5), (0.0, 0.6, 0.5), (0.0, 1.0)])
def test_steps_that_do_not_rise_from_zero(begins: tuple[float, ...]) -> None:
    with pytest.raises(CometError, match="expected rising shares of the training, 0 first, below 1"):
        Steps(tuple((begin, 1.0) for begin in begins))


@pytest.mark.parametrize("pairs", [(), 2.0, ((0.0, 2.0, 1.0),), (0.0, 2.0)])
def test_steps_that_are_no_pairs(pairs: object) -> None:
    with pytest.raises(CometError, match=r"^temperature .*: expected pairs, such as "):
        Steps(pairs)  # type: ignore[arg-type]


def test_a_temperature_that_cannot_be() -> None:
    with pytest.raises(CometError, match=r"^temperature 0: expected a number above 0, up to"):
        Steps(((0.0, 0),))


@pytest.mark.parametrize(
    "name", sorted(field.name for field in fields(Objective) if field.name != "differs_from_paper")
)
@pytest.mark.parametrize("value", [None, [], {}, b"1", object(), float("nan"), -1])
def test_a_value_of_another_kind_is_refused_by_name(name: str, value: object) -> None:
    if (name, value) == ("layer_map", None):
        return  # by depth
    with pytest.raises(CometError, match=rf"^{name}\b.*: expected ") as refused:
        replace(DEFAULT, **{name: value})  # type: ignore[arg-type]
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(("init", "width_256"), [("start", 2.5e-4), ("my-student", 2.5e-4), ("cache", 1.2e-3)])
def test_a_body_that_has_learnt_takes_smaller_steps(init: str, width_256: float) -> None:
    config = StudentConfig(Path("student"), init=init)
    shape = StudentShape("narrow", 6, 128, 8, 512)
    assert peak_learning_rate(config, shape) == pytest.approx(2 * width_256)
    assert peak_learning_rate(replace(config, learning_rate=0.5), shape) == 0.5
    of_paper = replace(config, objective=replace(DEFAULT, scales_with_width=False))
    assert peak_learning_rate(of_paper, shape) == pytest.approx(width_256)


@pytest.mark.parametrize(
    ("init", "rows", "epochs"),
    [("start", 300, 15), ("start", 16 * 100, 10), ("my-student", 10**6, 5), ("cache", 300, 15), ("random", 10**6, 15)],
)
def test_a_body_that_has_learnt_is_trained_for_fewer_epochs(init: str, rows: int, epochs: float) -> None:
    config = StudentConfig(Path("student"), init=init)
    assert default_epochs(config, rows) == epochs
    assert default_epochs(replace(config, objective=PAPER), rows) == 15
    assert default_epochs(replace(config, batch_size=32), 2 * rows) == epochs
    accumulating = replace(config, batch_size=8, arguments=(("gradient_accumulation_steps", 4),))
    assert default_epochs(accumulating, 2 * rows) == epochs, "as many steps of the optimiser"
    assert default_epochs(replace(config, objective=replace(DEFAULT, epochs=3)), rows) == 3, "as a recipe says"


def test_the_losses_that_are_named_are_those_that_there_are() -> None:
    of_logits = {name for targets in (ThresholdTargets, TopkTargets) for name in targets.losses}
    assert {name: set(choices) for name, choices in CHOICES.items()} == {
        "logit_loss": of_logits,
        "attention_loss": set(ATTENTION_LOSSES),
    }
