"""Objectives from TOML files, and their schedules of weights and temperatures."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from cache_tools.cli.config import as_toml
from cache_tools.errors import CometError
from comet.preparation import default_epochs, peak_learning_rate
from comet.settings import StudentConfig
from comet.student.family import StudentShape
from comet.train.losses import ATTENTION_LOSSES
from comet.train.objective import (
    CHOICES,
    DEFAULT,
    PAPER,
    Schedule,
    Steps,
    as_option,
    at,
    choose_objective,
    described,
    is_used,
    temperatures_of,
)
from comet.train.signals import ThresholdTargets, TopkTargets

FILE = """
base = "paper"
kd_weight = { start = 1, end = 0.5, shape = "cosine" }
hard_weight = 0.5
temperature = [[0, 2.0], [0.75, 1.0]]
logit_loss = "residual"
attention_loss = "mse"
layer_map = [[3, -1], [1, 0]]
epochs = 4
scales_with_width = true
"""


def written(folder: Path, text: str) -> str:
    (folder / "mine.toml").write_text(text, encoding="utf-8")
    return str(folder / "mine.toml")


def test_ours_go_by_name() -> None:
    assert (choose_objective("default"), choose_objective("paper")) == (DEFAULT, PAPER)


def test_a_file_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    recipe = choose_objective(written(tmp_path, FILE))
    assert recipe.name == "mine" and recipe.differs_from_paper == ()
    assert recipe.kd_weight == Schedule(1.0, 0.5, "cosine") and recipe.hard_weight == 0.5
    assert recipe.temperature == Steps(((0.0, 2.0), (0.75, 1.0)))
    assert (recipe.logit_loss, recipe.attention_loss) == ("residual", "mse")
    assert recipe.layer_map == ((3, -1), (1, 0))
    assert recipe.epochs == 4 and recipe.scales_with_width
    for name in ("attention_weight", "dropout", "learning_rate", "patience", "batch_size"):
        assert getattr(recipe, name) == getattr(PAPER, name)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("kd_wieght = 1", r"there is no kd_wieght; there are attention_loss, attention_weight,"),
        ('base = "papre"', "base: expected default or paper"),
        ('name = "mine"', "there is no name"),
        ("kd_weight = -1", r"kd_weight -1.0: expected a number of at least 0"),
        ("kd_weight = nan", "kd_weight: expected a number of at most 2147483647"),
        ("kd_weight = true", "kd_weight True: expected a number"),
        ("kd_weight = { from = 1, to = 0 }", "kd_weight: expected a number or { start = 1.0"),
        ("kd_weight = { start = 1, end = -1 }", "-1.0: expected a number of at least 0"),
        ('kd_weight = { start = 1, end = 0, shape = "step" }', "shape 'step': expected linear or cosine"),
        ("temperature = 0", "temperature 0: expected a number above 0"),
        ("temperature = [2.0, 1.0]", r"temperature \[2.0, 1.0\]: expected pairs"),
        ("temperature = [[0.5, 2.0]]", "expected rising shares"),
        ('logit_loss = "topk"', "logit_loss 'topk': expected kl, residual"),
        ("logit_loss = 1", "logit_loss 1: expected text"),
        ("layer_map = []", "layer_map: expected pairs of layers; for no attention give attention_weight = 0"),
        ("layer_map = [[1.5, 0]]", "layer_map 1.5: expected a whole number"),
        ("dropout = 1", "dropout 1.0: expected 0 to below 1"),
        ("epochs = 1.5", "epochs 1.5: expected a whole number"),
        ("batch_size = 0", "batch_size 0: expected a number above 0"),
        ("scales_with_width = 1", "scales_with_width 1: expected true or false"),
        ("kd_weight = ", "Invalid value"),
    ],
)
def test_a_file_that_is_wrong_is_told_where(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(CometError, match=rf"^--recipe .*mine\.toml: .*{said}") as refused:
        choose_objective(written(tmp_path, line))
    assert refused.value.exit_code == 2


def test_a_recipe_that_is_not_there() -> None:
    with pytest.raises(
        CometError, match=r"^--recipe papre: no such objective; expected default, paper, or a TOML file$"
    ):
        choose_objective("papre")


def test_a_recipe_as_an_option_is_read_back(tmp_path: Path) -> None:
    assert (as_option(DEFAULT), as_option(PAPER)) == ("default", "paper")
    recipe = choose_objective(written(tmp_path, FILE))
    table = tomllib.loads(as_toml({"recipe": as_option(recipe)}))["recipe"]
    assert choose_objective(table) == replace(recipe, name="recipe")
    with pytest.raises(CometError, match=r"^--config: recipe: there is no colour; there are attention_loss, "):
        choose_objective({"colour": 1})


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
    with pytest.raises(ValueError, match="expected a number of at least 0"):
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
