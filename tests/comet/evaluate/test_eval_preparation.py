"""What is wrong with the data or results of any language is found before the first fine-tuning of all."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from helpers.small_tasks import SIZES, write_topics

from comet.cli.evaluate import evaluate_models
from comet.evaluate.datasets import load_task
from comet.evaluate.scoreboard import data_warnings
from comet.evaluate.tasks import find_task


def evaluated(model: Path, data: Path, *options: str) -> Result:
    """comet-eval in Kinyarwanda and Swahili."""
    languages = ["--lang", "kin", "--lang", "swa"]
    call = ["--model", str(model), "--task", "sib200", "--data", str(data), *languages, *options]
    return CliRunner().invoke(evaluate_models, [*call, "--results", str(data.parent / "all.json")])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """SIB-200 in both languages."""
    write_topics(tmp_path / "data" / "kin")
    write_topics(tmp_path / "data" / "swa", SIZES | {"test": (35, 47)})
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


def test_files_of_one_language_are_not_those_of_all(data: Path, sample_teacher: Path) -> None:
    done = evaluated(sample_teacher, data / "kin")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: --data {data / 'kin'}: no subfolder kin or kin_Latn; with several --lang each needs its own, with the "
        "files from https://github.com/dadelani/sib-200\n"
    )


def test_two_languages_with_the_same_test_split(data: Path, sample_teacher: Path) -> None:
    shutil.copy(data / "kin" / "test.tsv", data / "swa" / "test.tsv")
    done = evaluated(sample_teacher, data)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        "error: --lang swa: its test split (test.tsv) holds the same texts and labels as that of kin; give each "
        "language its own files\n"
    )


def test_a_train_split_with_one_label_teaches_nothing(data: Path, sample_teacher: Path) -> None:
    train = data / "swa" / "train.tsv"
    train.write_text(train.read_text(encoding="utf-8").replace("\thealth\t", "\tsports\t"), encoding="utf-8")
    done = evaluated(sample_teacher, data)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        "error: --lang swa: the train split (train.tsv) has the label sports alone, in 24 items: nothing can be learnt "
        "from it; get the whole split from https://github.com/dadelani/sib-200\n"
    )


def test_a_test_split_that_is_the_train_split(data: Path, sample_teacher: Path) -> None:
    train = (data / "swa" / "train.tsv").read_text(encoding="utf-8")
    (data / "swa" / "test.tsv").write_text(train.replace("sports", "travel"), encoding="utf-8")
    done = evaluated(sample_teacher, data)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        "error: --lang swa: every text of the test split (test.tsv) is also in train (train.tsv): a score would say "
        "what was learnt by heart; get both splits from https://github.com/dadelani/sib-200\n"
    )


def test_known_items_and_unknown_labels_are_said(data: Path) -> None:
    train, test = (data / "kin" / f"{name}.tsv" for name in ("train", "test"))
    task = find_task("sib200")
    assert data_warnings(load_task(task, "kin", data)) == []
    learnt = train.read_text(encoding="utf-8").splitlines(keepends=True)[1:3]
    test.write_text(test.read_text(encoding="utf-8") + learnt[0] + learnt[1].replace("health", "travel"))
    assert data_warnings(load_task(task, "kin", data)) == [
        "2 of 14 items of test are also in train: every model has learnt them, so the scores are too high",
        "1 of 14 items of test have a label that no item of train has, so no model can learn it: travel",
    ]


def test_words_without_any_entity_teach_nothing(sample_teacher: Path, tmp_path: Path) -> None:
    for split in ("train", "dev"):
        (tmp_path / f"{split}.txt").write_text("Kigali O\nni O\n\numurwa O\n", encoding="utf-8")
    call = ["--model", str(sample_teacher), "--task", "masakhaner", "--lang", "kin", "--data", str(tmp_path)]
    done = CliRunner().invoke(evaluate_models, [*call, "--results", str(tmp_path / "r.json")])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--lang kin: the train split (train.txt) has the label O alone, in 3 words: nothing can be" in done.stderr
