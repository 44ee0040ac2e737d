"""Objectives by name and from TOML files."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from cache_tools.cli.config import as_toml
from cache_tools.errors import CometError
from comet.recipes import as_option, choose_objective
from comet.train.objective import DEFAULT, PAPER, Schedule, Steps

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
        ("kd_wieght = 1", r"unknown field kd_wieght; expected some of attention_loss, attention_weight,"),
        ('base = "papre"', "base papre: expected default, paper"),
        ('name = "mine"', "unknown field name"),
        ("kd_weight = -1", r"kd_weight -1: expected a number from 0, up to 1e\+09"),
        ("kd_weight = nan", "kd_weight nan: expected a number from 0"),
        ("kd_weight = true", "kd_weight True: expected a number"),
        ("kd_weight = { from = 1, to = 0 }", "kd_weight: expected a number or { start = 1.0"),
        ("kd_weight = { start = 1, end = -1 }", "kd_weight: end -1: expected a number from 0"),
        ('kd_weight = { start = 1, end = 0, shape = "step" }', "kd_weight: shape step: expected linear, cosine"),
        ("temperature = 0", "temperature 0: expected a number above 0"),
        ("temperature = [2.0, 1.0]", r"temperature \(2.0, 1.0\): expected pairs, such as \[\[0, 2.0\], \[0.5, 1.0\]\]"),
        ("temperature = [[0.5, 2.0]]", "expected rising shares"),
        ("temperature = [[0, 2.0], [0.5, 0]]", "temperature 0: expected a number above 0"),
        ('logit_loss = "topk"', "logit_loss topk: expected kl, residual"),
        ("logit_loss = 1", "logit_loss 1: expected kl, residual"),
        ("layer_map = []", "layer_map .*: expected pairs, .*; for no attention give attention_weight = 0"),
        ("layer_map = [[1, 0], [1]]", "layer_map .*: expected pairs"),
        ("layer_map = [[1.5, 0]]", "layer_map 1.5: expected a whole number"),
        ("dropout = 1", "dropout 1: expected a number from 0, up to 0.99"),
        ("epochs = 1.5", "epochs 1.5: expected a whole number from 1"),
        ("batch_size = 0", "batch_size 0: expected a whole number from 1"),
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
    with pytest.raises(CometError, match=r"^--config: recipe: unknown field colour; expected some of attention_loss, "):
        choose_objective({"colour": 1})
