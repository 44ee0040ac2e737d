"""Every option of comet-eval and comet-export, with values that it can hardly mean."""

from pathlib import Path

import pytest
from helpers.small_tasks import write_topics
from helpers.sweep import VALUES, answer, cases

from comet.cli.evaluate import evaluate_models
from comet.cli.export import export_model

NAMES = {"nan", "infinite", "minus infinite", "negative", "zero", "a float beyond all", "letters"}
LEGAL = {"--output": NAMES}
"""What an option may mean: then the model is looked for, and not found."""
LANGUAGES = {"nan", "infinite"}  # codes of three letters: Min Nan, and one that ISO 639-3 might have


@pytest.mark.parametrize("option", sorted({option for option, _ in cases(evaluate_models)} - {"--model"}))
def test_an_option_of_an_evaluation_means_what_it_says_or_is_refused_by_name(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_topics(tmp_path / "data" / "kin")
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
