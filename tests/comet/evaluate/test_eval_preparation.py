"""What is wrong with the data or results of any language is found before the first fine-tuning of all."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from helpers.small_tasks import write_topics

from comet.cli.evaluate import evaluate_models


def evaluated(model: Path, data: Path, *options: str) -> Result:
    """comet-eval in Kinyarwanda and Swahili."""
    languages = ["--lang", "kin", "--lang", "swa"]
    call = ["--model", str(model), "--task", "sib200", "--data", str(data), *languages, *options]
    return CliRunner().invoke(evaluate_models, [*call, "--results", str(data.parent / "all.json")])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """SIB-200 in both languages."""
    for language, shift in (("kin", 0), ("swa", 3)):
        sizes = {"train": (0, 24), "dev": (24, 32), "test": (32 + shift, 44 + shift)}
        write_topics(tmp_path / "data" / language, sizes)
    return tmp_path / "data"


def test_a_wrong_label_of_the_last_language(data: Path, sample_teacher: Path) -> None:
    test = data / "swa" / "test.tsv"
    test.write_text(test.read_text(encoding="utf-8").replace("health", "helth"), encoding="utf-8")
    done = evaluated(sample_teacher, data)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {test} line 2: label 'helth' is none of sib200's: ")


def test_a_split_that_the_last_language_lacks(data: Path, sample_teacher: Path) -> None:
    (data / "swa" / "train.tsv").unlink()
    done = evaluated(sample_teacher, data)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: --data {data}: no train.tsv (also .gz, .xz, .zst) for --lang swa; expected ")


def test_a_results_file_of_the_last_language(data: Path, sample_teacher: Path) -> None:
    (data.parent / "all-swa.json").write_text("{}")
    done = evaluated(sample_teacher, data)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: --results {data.parent / 'all-swa.json'}: not a file of comet-eval")
