"""The recipe: what is taken from a file of unknown origin, and what is not."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from helpers.hostile_json import JSON_VALUES
from helpers.small_caches import NO_START, recipe_json, small_recipe
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_tools.errors import CometError
from cache_tools.store.recipe import FORMAT_VERSION, INTEGER_BOUNDS, Recipe, parse_recipe
from cache_tools.store.records import canonical

DIGESTS = ("teacher_sha256", "tokenizer_sha256", "tokens_sha256", "seen_sha256")


def refusal(name: str, value: object) -> str:
    """What parsing the small recipe says after one of its fields was changed."""
    with pytest.raises(CometError) as caught:
        parse_recipe(recipe_json(small_recipe()) | {name: value}, "kin.zarr")
    return str(caught.value)


def test_a_recipe_survives_json() -> None:
    recipe = small_recipe()
    parsed = parse_recipe(json.loads(json.dumps(recipe_json(recipe))), "kin.zarr")
    assert parsed == recipe
    assert parsed.recipe_id == recipe.recipe_id


def test_the_recipe_id_is_the_same_on_every_machine() -> None:
    """Caches already built are named by it."""
    assert small_recipe().recipe_id == "a64194eb05fc5a411082e8dcd82bcf5b4940bdba81e47586c21f7462f141d925"


@pytest.mark.parametrize("field", [field.name for field in fields(Recipe)])
def test_every_field_is_part_of_the_recipe_id(field: str) -> None:
    recipe = small_recipe()
    value = getattr(recipe, field)
    if isinstance(value, tuple):
        other: Any = value[:-1] if value else (1,)
    else:
        other = value + "x" if isinstance(value, str) else value + 1
    changed = replace(recipe, **{field: other})
    assert changed.recipe_id != recipe.recipe_id
    assert recipe.differences(changed) == [f"{field}: {value} against {other}"]


@pytest.mark.parametrize("name", INTEGER_BOUNDS)
def test_whole_numbers_are_bounded(name: str) -> None:
    low, high = INTEGER_BOUNDS[name]
    for wrong in (low - 1, high + 1, 10**400, float(low), str(low), True, None, [low]):
        message = refusal(name, wrong)
        if name == "format":
            assert message.startswith(("kin.zarr: cache format ", "kin.zarr: recipe field 'format': "))
        else:
            assert message.startswith(f"kin.zarr: recipe field {name!r}: expected a whole number from {low} to {high}")


@pytest.mark.parametrize(
    ("name", "wrong", "expected"),
    [
        *[(name, value, "64 hexadecimal digits") for name in DIGESTS for value in ("a" * 63, "A" * 64, "g" * 64, 7)],
        ("teacher_architecture", 7, "the name of a class"),
        ("text_form", "NFD", "'NFC'"),
        ("attention_rule", "all", "'mean over heads, stratified queries, systematic sample of keys'"),
        ("keep", "all", "threshold or topk"),
        ("keep", ["topk"], "threshold or topk"),
        *[("mask_prob", v, "a number between 0 and 1") for v in (0.0, 1.0, -0.1, 1, "0.15", float("nan"), None)],
        *[(name, 50, "an id below 50") for name in ("bos_id", "eos_id", "pad_id", "mask_id")],
        ("seen_size", 51, "at most 50"),
        ("top_k", 51, "at most 50"),
        ("max_targets", 17, "at most 16"),
        ("attention_keys", 17, "at most 16"),
        *[("special_ids", v, "different numbers from 0 to 49") for v in ([50], [-1], [1.0], [1, 1], [], "01", [True])],
        *[
            ("temperatures", v, "different numbers from 0.01 to 1000.0")
            for v in ([0.0], [1], [float("nan")], [float("inf")], [1.0, 1.0], [], {"1.0": 1}, [[1.0]])
        ],
        *[
            (name, v, "different numbers from 0 to 2")
            for name in ("attention_layers", "start_layers")
            for v in ([3], [-1], [1, 1], None, [10**400])
        ],
        ("start_width", 14, "at most 12"),
        ("start_width", 7, "a multiple of 2"),
        ("teacher_heads", 8, "a divisor of 12"),
    ],
)
def test_every_other_field_is_checked_by_name(name: str, wrong: object, expected: str) -> None:
    message = refusal(name, wrong)
    assert message.startswith(f"kin.zarr: recipe field {name!r}: expected ")
    assert expected in message
    assert ", found " in message
    assert len(message) < 300


@pytest.mark.parametrize("name", ["start_width", "start_neurons", "start_positions", "start_rows"])
def test_a_start_is_there_in_all_of_its_fields_or_in_none(name: str) -> None:
    expected = f"kin.zarr: recipe field {name!r}: expected a number above 0 if layers are kept, else 0, found "
    assert refusal(name, 0) == f"{expected}'0'"
    without = recipe_json(small_recipe(**NO_START))
    assert parse_recipe(without, "kin.zarr").start_layers == ()
    with pytest.raises(CometError) as caught:
        parse_recipe(without | {name: 2}, "kin.zarr")
    assert str(caught.value) == f"{expected}'2'"


def test_heads_need_not_divide_the_width_of_a_teacher_without_a_start() -> None:
    recipe = small_recipe(**NO_START, teacher_heads=5)
    assert parse_recipe(recipe_json(recipe), "kin.zarr") == recipe


def test_a_threshold_sample_needs_two_tokens_and_temperature_one() -> None:
    sampled = recipe_json(small_recipe(keep="threshold"))
    assert parse_recipe(sampled, "kin.zarr").keep == "threshold"
    with pytest.raises(CometError, match=r"^kin\.zarr: recipe field 'top_k': expected at least 2 for a threshold"):
        parse_recipe(sampled | {"top_k": 1}, "kin.zarr")
    with pytest.raises(CometError, match=r"^kin\.zarr: recipe field 'temperatures': expected 1 among them"):
        parse_recipe(sampled | {"temperatures": [2.0]}, "kin.zarr")


def test_lists_are_bounded_in_length() -> None:
    recipe = recipe_json(small_recipe()) | {"temperatures": [0.01 + i / 10_000 for i in range(10**5)]}
    with pytest.raises(CometError, match="recipe field 'temperatures'"):
        parse_recipe(recipe, "kin.zarr")


def test_missing_and_unknown_fields_are_named() -> None:
    whole = recipe_json(small_recipe())
    with pytest.raises(CometError, match=r"^kin\.zarr: recipe fields missing or unknown: colour, seed$"):
        parse_recipe({name: value for name, value in whole.items() if name != "seed"} | {"colour": 1}, "kin.zarr")


@pytest.mark.parametrize("version", [0, 1, 99, "2", None])
def test_another_format_version_says_what_to_do(version: object) -> None:
    with pytest.raises(CometError) as caught:
        parse_recipe({"format": version, "unheard": "of"}, "kin.zarr")
    assert str(caught.value) == (
        f"kin.zarr: cache format {str(version)!r}; this version of comet reads format {FORMAT_VERSION}. "
        "Use a comet release that reads it, or build the cache again"
    )


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([field.name for field in fields(Recipe)]), JSON_VALUES | st.floats())
def test_a_recipe_is_within_bounds_or_refused(name: str, value: Any) -> None:
    """Whatever stands in a field: either a recipe whose numbers all keep their bounds, or one CometError."""
    try:
        recipe = parse_recipe(recipe_json(small_recipe()) | {name: value}, "kin.zarr")
    except CometError:
        return
    for field, (low, high) in INTEGER_BOUNDS.items():
        found = getattr(recipe, field)
        assert type(found) is int
        assert low <= found <= high
    assert recipe.max_targets <= recipe.seq_len
    assert max(recipe.special_ids) < recipe.vocab_size
    assert recipe == parse_recipe(json.loads(canonical(recipe_json(recipe))), "kin.zarr")


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 200), st.integers(1, 50))
def test_shards_hold_every_row_once(rows: int, rows_per_shard: int) -> None:
    recipe = small_recipe(train_rows=rows, rows_per_shard=rows_per_shard)
    sizes = [recipe.shard_rows("train", shard) for shard in range(recipe.shards("train"))]
    assert sum(sizes) == rows
    assert sizes[:-1] == [rows_per_shard] * (len(sizes) - 1)
    assert 1 <= sizes[-1] <= rows_per_shard
