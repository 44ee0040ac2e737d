"""Every option of comet-train, every field of its files and of its API, with values that it can hardly mean."""

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.sweep import VALUES, answer, cases

from cache_tools import Cache
from cache_tools.errors import CometError
from comet import StudentConfig, distill, open_for_training
from comet.cli.train import train
from comet.recipes import choose_objective
from comet.train.objective import DEFAULT, Objective

LEGAL = {
    "--seed": {"zero"},
    "--save-minutes": {"zero"},
    "--output": {"nan", "infinite", "minus infinite", "negative", "zero", "a float beyond all", "letters"},
    "--local-cache": {"nan", "infinite", "minus infinite", "negative", "zero", "a float beyond all", "letters"},
}
"""What an option may mean: then the training is prepared, and there is nothing to resume."""


@pytest.mark.slow
@pytest.mark.parametrize("option", sorted({option for option, _ in cases(train)}))
def test_an_option_means_what_it_says_or_is_refused_by_name(
    option: str, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for one, name in cases(train) if one == option]:
        given = {"--cache": str(cache.root), "--student": "nano", "--output": "s"} | {option: VALUES[name]}
        said = answer(train, ["--resume", *(part for pair in given.items() for part in pair)], tmp_path)
        assert (said.code, said.left) == (2, []) or (option == "--cache" and said.code == 1), (option, name, said)
        prepared = said.error.startswith("error: --resume: no complete checkpoint in ")
        assert prepared == (name in LEGAL.get(option, ())), (name, said.error)
        assert prepared or option in said.error or option == "--cache", said.error


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(CometError) as caught:
        call()
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    return str(caught.value)


STRANGE: list[Any] = [float("nan"), float("inf"), -1, 10**400, 10**5000, True, "x", "", [], {}, object()]
MEANT = defaultdict(list[Any], output=["x"], student=["x"], init=["x"], resume=[True], arguments=[[], {}])


@pytest.mark.parametrize("field", list(StudentConfig.__dataclass_fields__))
def test_a_field_of_the_settings_takes_what_it_can_mean(field: str) -> None:
    for value in STRANGE:
        if any(value is one or value == one for one in MEANT[field]):
            continue
        message = refused(lambda value=value: StudentConfig(**{"output": "s", field: value}))  # type: ignore[misc]
        assert field.replace("_", "-") in message or field in message or field == "arguments", message


def test_an_objective_may_be_given_as_the_command_takes_it(tmp_path: Path) -> None:
    assert StudentConfig("s", objective="paper").objective == choose_objective("paper") != DEFAULT  # type: ignore[arg-type]
    own = tmp_path / "own.toml"
    own.write_text("hard_weight = 0.5")
    assert StudentConfig("s", objective=str(own)).objective == replace(DEFAULT, name="own", hard_weight=0.5)  # type: ignore[arg-type]


def test_a_cache_may_be_named_by_its_folder(cache: Cache, tmp_path: Path) -> None:
    students = []
    for number, caches in enumerate(([cache], cache.root, [str(cache.root)])):
        output = tmp_path / str(number)
        distill(caches, StudentConfig(output, student="nano", steps=1))
        students.append((output / "model.safetensors").read_bytes())
    assert students[0] == students[1] == students[2]


def test_what_is_no_cache_and_no_settings_is_said(cache: Cache, tmp_path: Path) -> None:
    config = StudentConfig(tmp_path / "s", steps=1)
    for caches in ([], [cache, "kin.zarr"], cache, None):
        assert "expected folders, or what open_for_training returns" in refused(lambda c=caches: distill(c, config))  # type: ignore[misc]
    for named in (str(tmp_path / "kin.zarr"), [str(tmp_path / "kin.zarr")], tmp_path / "kin.zarr"):
        assert "kin.zarr: no such cache" in refused(lambda c=named: distill(c, config))  # type: ignore[misc]
    assert "expected a StudentConfig" in refused(lambda: distill([cache], {"output": "s"}))  # type: ignore[arg-type]
    for locations in ("kin.zarr", [], tmp_path):
        assert "expected a list of folders or URLs" in refused(lambda at=locations: open_for_training(at))  # type: ignore[misc]
    assert "--epochs and --steps: expected one of them" in refused(lambda: replace(config, epochs=1.0))


TOML = ("nan", "inf", "-1", "1" + "0" * 400, '""', '"x"', "true", "[]", "[[]]", "[[0, 1], [0, 1]]", "{}", "1979-05-27")
ABSENT = {"name", "differs_from_paper"}


@pytest.mark.parametrize("field", sorted(set(Objective.__dataclass_fields__) - ABSENT))
def test_a_field_of_a_recipe_takes_what_it_can_mean(field: str, tmp_path: Path) -> None:
    for value in TOML:
        (tmp_path / "mine.toml").write_text(f"{field} = {value}\n")
        if (field, value) in {("scales_with_width", "true"), ("layer_map", "[]"), ("layer_map", "[[0, 1], [0, 1]]")}:
            continue
        message = refused(lambda: choose_objective(str(tmp_path / "mine.toml")))
        assert field in message or "temperature" in message, message


def test_a_recipe_s_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xef\xbb\xbfpatience = 9\n")
    assert choose_objective(str(tmp_path / "mine.toml")) == replace(DEFAULT, name="mine", patience=9)


SHAPE = {"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 96}
JSON = ("NaN", "Infinity", "-1", "0", "2.5", "1" + "0" * 400, "1e400", '"x"', '"4"', "true", "null", "[]", "{}")


@pytest.mark.slow
@pytest.mark.parametrize("field", SHAPE)
def test_a_field_of_a_shape_takes_what_it_can_mean(
    field: str, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in JSON:
        text = json.dumps(SHAPE | {field: "VALUE"}).replace('"VALUE"', value)
        (tmp_path / "shape.json").write_text(text)
        options = ["--cache", str(cache.root), "--student", "shape.json", "--output", "s", "--resume"]
        said = answer(train, options, tmp_path)
        assert (said.code, said.left) == (2, []), (field, value, said)
        assert said.error.startswith(f"error: --student shape.json: {field} "), (value, said.error)


def test_a_shape_that_no_memory_holds_is_refused(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "shape.json").write_text(json.dumps(SHAPE | {"hidden_size": 2**20}))
    config = StudentConfig(tmp_path / "s", student=str(tmp_path / "shape.json"))
    assert "parameters and more; expected at most 2,147,483,648" in refused(lambda: distill([cache], config))
