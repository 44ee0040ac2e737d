"""Options of a build: layers by name or number, and numbers that cannot be."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from cache_tools import build_cache
from cache_tools.errors import CometError
from cache_tools.settings import BuildSettings, Part, RerunSettings, parse_layers

SETTINGS = BuildSettings(out=Path("kin.zarr"), language="kin", teacher="teacher", text=("kin.txt",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("last", (23,)),
        ("all", tuple(range(24))),
        ("none", ()),
        ("spread:6", (3, 7, 11, 15, 19, 23)),
        ("spread:5", (3, 8, 13, 18, 23)),
        ("spread:1", (23,)),
        ("spread:30", tuple(range(24))),
        ("every:4", (3, 7, 11, 15, 19, 23)),
        ("every:100", (23,)),
        ("-1,-7", (17, 23)),
        ("0, 5,-1", (0, 5, 23)),
        ("3,3,-21", (3,)),
    ],
)
def test_layers(text: str, expected: tuple[int, ...]) -> None:
    assert parse_layers(text, 24) == expected


@pytest.mark.parametrize(
    "text", ["", "24", "-25", "first", "every:0", "every:", "spread:0", "spread:x", "often:2", "1,,2", "1.5"]
)
def test_layers_that_do_not_exist(text: str) -> None:
    with pytest.raises(CometError, match=r"expected last, all, none, spread:N, every:N, or .* within 24 layers"):
        parse_layers(text, 24)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seq_len", 7, r"--seq-len 7: expected 8 to 8192 tokens"),
        ("views", 0, r"--views 0: expected 1 to 1000"),
        ("mask_prob", 1.0, r"--mask-prob 1.0: expected a share between 0 and 1"),
        ("mask_prob", float("nan"), r"--mask-prob nan: expected a share between 0 and 1"),
        ("seed", -1, r"--seed -1: expected a whole number from 0"),
        ("top_k", 0, r"--top-k 0: expected 2 to 16384"),
        ("attention_keys", 129, r"--attention-keys 129: expected 1 to 128"),
        ("attention_keys", 0, r"--attention-keys 0: expected 1 to 128"),
        ("attention_queries", 0, r"--attention-queries 0: expected 1 to 1024"),
        ("rows_per_shard", 0, r"--rows-per-shard 0: expected 1 to 1048576"),
        ("max_tokens", 0, r"--max-tokens 0: expected a whole number of at least 1"),
        ("batch_size", 0, r"--batch-size 0: expected 1 to 1048576"),
        ("dtype", "bf16", r"--dtype bf16: expected auto, float32, float16, bfloat16"),
        ("temperatures", (), r"--temperatures : expected up to 16 different numbers"),
        ("temperatures", (1.0, 1.0), r"--temperatures 1,1: expected up to 16 different numbers"),
        ("temperatures", (float("inf"),), r"--temperatures inf: expected up to 16 different numbers"),
    ],
)
def test_numbers_that_cannot_be(field: str, value: object, message: str) -> None:
    with pytest.raises(CometError, match=message) as caught:
        replace(SETTINGS, **{field: value})
    assert caught.value.exit_code == 2


WRONG_TYPES = (None, True, 3, 0.5, "x", Path("x"), ["x"], ("x",), (3,), {"x": 1}, b"x", float("nan"), 10**400)


@pytest.mark.parametrize("settings", [SETTINGS, RerunSettings("teacher"), Part()], ids=lambda s: type(s).__name__)
def test_a_value_of_another_type_is_named(settings: Any) -> None:
    for field in fields(settings):
        errors = [error for value in WRONG_TYPES if (error := refusal(settings, field.name, value)) is not None]
        assert errors and {error.exit_code for error in errors} == {2}
        for said in map(str, errors):
            assert field.name in said or f"--{field.name.replace('_', '-')}" in said


def refusal(settings: Any, field: str, value: object) -> CometError | None:
    try:
        replace(settings, **{field: value})
    except CometError as error:
        return error
    return None


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("out", "kin.zarr", "BuildSettings: out 'kin.zarr': expected Path, found str"),
        ("text", ["kin.txt"], "BuildSettings: text \"['kin.txt']\": expected tuple[str, ...], found list"),
        ("text", "kin.txt", "BuildSettings: text 'kin.txt': expected tuple[str, ...], found str"),
        ("views", True, "BuildSettings: views 'True': expected int | None, found bool"),
        ("max_tokens", 1.5, "BuildSettings: max_tokens '1.5': expected int | None, found float"),
    ],
)
def test_how_another_type_is_named(field: str, value: object, said: str) -> None:
    with pytest.raises(CometError) as caught:
        replace(SETTINGS, **{field: value})
    assert str(caught.value) == said


def test_a_whole_number_is_a_temperature_too() -> None:
    assert replace(SETTINGS, temperatures=(1, 2)).temperatures == (1.0, 2.0)
    assert all(type(one) is float for one in replace(SETTINGS, temperatures=(1, 2)).temperatures)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"settings": None}, "build_cache: settings 'None': expected BuildSettings, found NoneType"),
        ({"worker": "1/2"}, "build_cache: worker '1/2': expected Worker, found str"),
        ({"push_to": 3}, "build_cache: push_to '3': expected str | pathlib.Path | None, found int"),
        ({"max_hours": "1"}, "build_cache: max_hours '1': expected float | None, found str"),
        ({"max_hours": float("nan")}, "--max-hours nan: expected more than 0, at most 100000"),
        ({"max_hours": float("inf")}, "--max-hours inf: expected more than 0, at most 100000"),
        ({"max_hours": 0}, "--max-hours 0: expected more than 0, at most 100000"),
    ],
)
def test_a_build_called_with_other_types(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(CometError) as caught:
        build_cache(**{"settings": SETTINGS} | arguments)
    assert str(caught.value) == said and caught.value.exit_code == 2


def test_what_a_threshold_sample_needs() -> None:
    with pytest.raises(CometError, match=r"^--top-k 1: expected 2 to 16384"):
        replace(SETTINGS, keep="threshold", top_k=1)
    with pytest.raises(CometError, match=r"^--temperatures 2: expected 1 among them"):
        replace(SETTINGS, keep="threshold", temperatures=(2.0,))


def test_as_many_keys_are_kept_as_there_are_unless_asked_otherwise() -> None:
    asked = ((128, None), (10, None), (40, 8))
    assert [replace(SETTINGS, seq_len=n, attention_keys=keys).keys_kept for n, keys in asked] == [16, 10, 8]


def test_a_small_text_is_masked_in_more_views() -> None:
    tokens = (0, 1, 250_000, 400_000, 1_999_999, 2_000_000, 10**9)  # 0 where a cache does not say
    assert [SETTINGS.views_of(n) for n in tokens] == [16, 16, 8, 5, 2, 1, 1]
    assert [replace(SETTINGS, views=3).views_of(n) for n in tokens] == [3] * len(tokens)
