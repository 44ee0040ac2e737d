"""Shapes: the paper's, those of a size relative to the teacher, and from files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.small_caches import NO_START, small_recipe
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_tools.errors import CometError
from cache_tools.store.recipe import Recipe
from comet.student.family import BERT, MODERN_BERT, XLM_R, StudentShape
from comet.student.shape import COMET, MOST_PARAMETERS, SMALLER, choose_shape, count_parameters
from comet.student.start import misfit

VOCABULARY = 250_002
LARGE: dict[str, Any] = {
    "teacher_parameters": 559_890_432,
    "teacher_layers": 24,
    "teacher_hidden": 1024,
    "teacher_heads": 16,
    "start_layers": tuple(range(24)),
    "start_width": 512,
    "start_neurons": 2048,
}
AFRO_XLMR_LARGE = small_recipe(**LARGE)


def shape_of(requested: str, recipe: Recipe, vocab_size: int) -> tuple[int, int, int, int]:
    shape = choose_shape(requested, recipe, vocab_size)
    return shape.layers, shape.hidden, shape.heads, shape.intermediate


def test_the_comet_shape_has_the_paper_s_parameters() -> None:
    assert choose_shape("comet", AFRO_XLMR_LARGE, VOCABULARY) is COMET
    assert count_parameters(COMET, VOCABULARY, XLM_R) == 68_937_216


@pytest.mark.parametrize(
    ("name", "vocab_size", "expected"),
    [
        ("small", VOCABULARY, (24, 256, 16, 1024)),
        ("tiny", VOCABULARY, (24, 176, 16, 704)),
        ("nano", VOCABULARY, (24, 96, 16, 384)),
        ("small", 30_000, (24, 480, 16, 1920)),
        ("tiny", 30_000, (24, 384, 16, 1536)),
        ("nano", 30_000, (24, 256, 16, 1024)),
    ],
)
def test_sizes_for_afro_xlmr_large(name: str, vocab_size: int, expected: tuple[int, ...]) -> None:
    assert shape_of(name, AFRO_XLMR_LARGE, vocab_size) == expected
    shape = choose_shape(name, AFRO_XLMR_LARGE, vocab_size)
    assert shape.name == name
    assert misfit(shape, AFRO_XLMR_LARGE) is None


@pytest.mark.parametrize("name", SMALLER)
@pytest.mark.parametrize("vocab_size", [8_000, 60_000, VOCABULARY])
def test_a_size_is_the_widest_that_is_so_much_smaller(name: str, vocab_size: int) -> None:
    shape = choose_shape(name, AFRO_XLMR_LARGE, vocab_size)
    limit = (1 - SMALLER[name]) * AFRO_XLMR_LARGE.teacher_parameters
    assert count_parameters(shape, vocab_size, XLM_R) <= limit
    wider = replace(shape, hidden=shape.hidden + 16, intermediate=shape.intermediate + 64)
    too_wide = wider.hidden > AFRO_XLMR_LARGE.start_width
    assert too_wide or count_parameters(wider, vocab_size, XLM_R) > limit


def test_auto_is_small() -> None:
    assert choose_shape("auto", AFRO_XLMR_LARGE, 30_000) == choose_shape("small", AFRO_XLMR_LARGE, 30_000)


def test_the_narrowest_where_none_is_small_enough() -> None:
    recipe = replace(AFRO_XLMR_LARGE, teacher_parameters=1000)
    assert shape_of("nano", recipe, VOCABULARY) == (24, 16, 16, 64)


def test_no_wider_than_the_start() -> None:
    recipe = replace(AFRO_XLMR_LARGE, start_width=128, start_neurons=512)
    assert shape_of("small", recipe, 8_000) == (24, 128, 16, 512)


def test_only_the_layers_of_the_start() -> None:
    recipe = replace(AFRO_XLMR_LARGE, start_layers=(5, 11, 17, 23))
    assert shape_of("nano", recipe, 60_000) == (4, 352, 16, 1408)


def test_without_a_start_six_layers_and_four_heads() -> None:
    recipe = replace(AFRO_XLMR_LARGE, **NO_START)
    assert shape_of("small", recipe, VOCABULARY) == (6, 304, 4, 1216)
    assert shape_of("small", replace(recipe, teacher_layers=3), VOCABULARY)[0] == 3


def test_heads_of_modernbert_are_of_an_even_width() -> None:
    recipe = replace(AFRO_XLMR_LARGE, **NO_START, teacher_architecture="ModernBertForMaskedLM")
    for name in SMALLER:
        shape = choose_shape(name, recipe, 60_000)
        assert shape.hidden // shape.heads % MODERN_BERT.head_multiple == 0


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([1, 2, 3, 5, 12]), st.integers(1, 8), st.integers(1, 64), st.integers(4, 10**9))
def test_every_size_fits_its_start(heads: int, steps: int, neurons: int, parameters: int) -> None:
    """A start of any width that its heads divide, also a narrow one of few neurons."""
    width = heads * steps
    recipe = small_recipe(
        teacher_hidden=2 * width,
        teacher_heads=heads,
        teacher_parameters=parameters,
        start_width=width,
        start_neurons=neurons,
    )
    shape = choose_shape("small", recipe, 500)
    assert misfit(shape, recipe) is None
    assert shape.layers == len(recipe.start_layers) and shape.hidden % shape.heads == 0
    assert min(shape.hidden, shape.intermediate) > 0


CONFIG = {"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(CONFIG))
    return path


def test_a_shape_from_a_config_file(path: Path) -> None:
    assert choose_shape(str(path), AFRO_XLMR_LARGE, 99) == StudentShape("mine", 2, 24, 3, 40)


def test_what_is_not_used_of_a_config_file_is_said(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(json.dumps(CONFIG | {"vocab_size": 7, "hidden_act": "relu"}))
    choose_shape(str(path), AFRO_XLMR_LARGE, 99)
    said = f"--student {path}: gives the four sizes only; not used: hidden_act, vocab_size\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON: Expecting property name"),
        ("[1, 2]", "expected a JSON object with num_hidden_layers, .*; it lacks num_hidden_layers, hidden_size, "),
        ('{"num_hidden_layers": 2, "hidden_size": 24}', ".*; it lacks num_attention_heads, intermediate_size$"),
    ],
)
def test_a_file_that_is_no_config(path: Path, content: str, message: str) -> None:
    path.write_text(content)
    with pytest.raises(CometError, match=rf"^--student {path}: {message}") as caught:
        choose_shape(str(path), AFRO_XLMR_LARGE, 99)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, "24 is not a multiple of 5 heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers 0: expected a whole number from 1"),
        ({"hidden_size": "wide"}, "hidden_size wide: expected a whole number from 1"),
        ({"hidden_size": None}, "hidden_size None: expected a whole number from 1"),
    ],
)
def test_a_config_file_that_is_none(path: Path, changes: dict[str, object], message: str) -> None:
    path.write_text(json.dumps(CONFIG | changes))
    with pytest.raises(CometError, match=rf"--student {path}: {message}") as caught:
        choose_shape(str(path), AFRO_XLMR_LARGE, 99)
    assert caught.value.exit_code == 2


def test_no_recipe_asks_for_more_than_so_many_parameters() -> None:
    huge = replace(AFRO_XLMR_LARGE, **NO_START, teacher_parameters=2**50, teacher_hidden=2**20)
    assert 0.9 * MOST_PARAMETERS < count_parameters(choose_shape("auto", huge, 99), 99, XLM_R) <= MOST_PARAMETERS


def test_an_unknown_size_names_the_known(tmp_path: Path) -> None:
    expected = r"^--student huge: expected auto, comet, small, tiny, nano, or a JSON file with num_hidden_layers, "
    with pytest.raises(CometError, match=expected):
        choose_shape("huge", AFRO_XLMR_LARGE, 99)


def test_parameters_count_the_vocabulary_once() -> None:
    shape = StudentShape("any", 2, 24, 3, 40)
    assert count_parameters(shape, 101, BERT) - count_parameters(shape, 100, BERT) == 24
