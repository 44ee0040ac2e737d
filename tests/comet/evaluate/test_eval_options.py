"""Every option of comet-eval and comet-export, with values that it can hardly mean."""

import re
from pathlib import Path
from typing import Any

import pytest
from helpers import REPOSITORY
from helpers.small_tasks import write_topics
from helpers.sweep import VALUES, answer, cases
from huggingface_hub import constants

from cache_tools.errors import CometError
from cache_tools.places.destinations import SEAL
from comet.cli.evaluate import evaluate_models
from comet.cli.export import export_model
from comet.evaluate.settings import EvaluationSettings

NAMES = {"nan", "infinite", "minus infinite", "negative", "zero", "a float beyond all", "letters"}
LEGAL = {"--output": NAMES}
"""What an option may mean: then the model is looked for in its folder, and not found."""
LANGUAGES = {"nan", "infinite"}  # codes of three letters: Min Nan, and one that ISO 639-3 might have


@pytest.mark.parametrize("option", sorted({option for option, _ in cases(evaluate_models)} - {"--model"}))
def test_an_option_of_an_evaluation_means_what_it_says_or_is_refused_by_name(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_topics(tmp_path / "data" / "kin")
    (tmp_path / "none").mkdir()
    monkeypatch.chdir(tmp_path)
    base = {"--model": "./none", "--task": "sib200", "--lang": "kin", "--data": "data"}
    for name in [name for one, name in cases(evaluate_models) if one == option]:
        given = base | {option: VALUES[name]}
        said = answer(evaluate_models, [part for pair in given.items() for part in pair], tmp_path)
        assert (said.code, said.left) == (2, []), (option, name, said)
        looked = "./none" in said.error
        assert looked == (name in LEGAL.get(option, ())), (option, name, said.error)
        assert looked or option in said.error or (option == "--lang" and name in LANGUAGES), said.error


@pytest.mark.parametrize("name", VALUES)
def test_a_model_is_a_folder_or_a_name_on_the_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_topics(tmp_path / "data" / "kin")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    options = ["--task", "sib200", "--lang", "kin", "--data", "data", "--model", VALUES[name]]
    said = answer(evaluate_models, options, tmp_path)
    assert said.code in (1, 2) and said.left == [] and "--model" in said.error, said


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "kin-smal",
            r"--model kin-smal \(did you mean kin-small\?\): no such folder here; for the model of that name on "
            "the hub give kin-smal@main$",
        ),
        ("kin-smal@main", r"--model kin-smal@main \(no such folder here\): not in the hub's cache"),
        ("lab/kin", r"--model lab/kin \(no such folder here\): not in the hub's cache"),
        (
            "./trained/kin-smal",
            r"--model \./trained/kin-smal \(did you mean trained/kin-smalls\?\): cannot be",
        ),
        ("kin.zarr", r"--model kin.zarr: is a cache; expected the folder of a model, such as a student that"),
    ],
)
def test_a_model_that_is_not_here(given: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_topics(tmp_path / "data" / "kin")
    for file in ("kin-small/config.json", "kin-smals/notes.txt", "trained/kin-smalls/config.json", "kin.zarr/" + SEAL):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    call = ["--task", "sib200", "--lang", "kin", "--data", "data", "--model", given]
    said = answer(evaluate_models, call, tmp_path)
    assert re.match(f"error: {message}", said.error), said


@pytest.mark.parametrize("given", ["kin-studen", "./kin-studen"])
def test_a_slip_in_the_name_of_a_model_is_found_before_all_else(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the data, which is not here, and the results, which are another file."""
    (tmp_path / "kin-student").mkdir()
    (tmp_path / "kin-student" / "config.json").write_text("{}")
    (tmp_path / "eval-sib200-kin.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    said = answer(evaluate_models, ["--task", "sib200", "--lang", "kin", "--model", given], tmp_path)
    assert said.code == 2 and said.error.startswith(f"error: --model {given} (did you mean kin-student?): "), said


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("option", ["MODEL", "--output", "--format"])
def test_an_option_of_an_export_is_refused_by_name(
    option: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    options = [VALUES[name]] if option == "MODEL" else ["model", option, VALUES[name]]
    said = answer(export_model, ["--", *options] if option == "MODEL" else options, tmp_path)
    assert said.code in (1, 2) and said.left == [], said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 0}, "--seeds 0: expected a whole number from 1"),
        ({"seeds": True}, "--seeds True: expected a whole number from 1"),
        ({"epochs": 2.5}, "--epochs 2.5: expected a whole number from 1"),
        ({"batch_size": 10**400}, "--batch-size 1000.*: expected a whole number from 1"),
        ({"max_length": -1}, "--max-length -1: expected a whole number from 1"),
        ({"task": ""}, "--task : expected a string"),
        ({"language": None}, "--lang None: expected a string"),
        ({"data": 5}, "--data 5: expected a path"),
        ({"results": ""}, "--results : expected a path"),
        ({"models": "kin-student"}, "--model: expected at least one, in a tuple"),
        ({"models": ("a", None)}, "--model None: expected a string"),
        ({"learning_rate": float("nan")}, "--learning-rate nan: expected a number above 0"),
        ({"models": ()}, "--model: expected at least one"),
        ({"models": ("a", "b", "a")}, "--model a: given twice"),
        ({"output": REPOSITORY}, "exists; give another folder"),
    ],
)
def test_wrong_calls(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CometError, match=message) as caught:
        EvaluationSettings(**({"models": ("a",), "task": "sib200", "language": "kin"} | change))
    assert caught.value.exit_code == 2
