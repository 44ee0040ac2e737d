"""comet-eval as a person runs it: its files, a stop, several languages in one call."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import REPOSITORY
from helpers.small_tasks import SIZES, write_entities, write_topics

from cache_tools.cli.entry import comet_eval
from comet.cli.evaluate import evaluate_models
from comet.evaluate.evaluation import Evaluation
from comet.evaluate.preparation import Preparation
from comet.evaluate.settings import EvaluationSettings


def test_the_command_line(student: Path, sample_teacher: Path, tmp_path: Path) -> None:
    """As a person runs it: tagging without a test split, defaults for the files; then again by mistake."""
    data = write_entities(tmp_path / "ner")
    call = ["--model", str(sample_teacher), "--model", str(student), "--task", "masakhaner", "--lang", "kin"]
    (tmp_path / "quick.toml").write_text("seeds = 1\nepochs = 2\n")
    call += ["--data", str(data), "--config", str(tmp_path / "quick.toml"), "--output", "deployed"]
    done = subprocess.run(
        [sys.executable, "-m", "comet", "eval", *call],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, *_, last = done.stdout.splitlines()
    assert "MasakhaNER (named entities), kin: entity F1 on dev (8 items of dev.txt; there is no test split)" in first
    assert last == "all runs with their predictions: eval-masakhaner-kin.json; charts: eval-masakhaner-kin.html"
    assert {"eval-masakhaner-kin.json", "eval-masakhaner-kin.html", "deployed"} < {p.name for p in tmp_path.iterdir()}
    card = (tmp_path / "deployed" / "README.md").read_text(encoding="utf-8")
    assert "Always predicting the most frequent label of train, " in card and "token-classification" in card
    assert "Of the seeds" not in card and "distilled from a teacher in the folder" in card, "what it comes from"
    tokenizer = json.loads((tmp_path / "deployed" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast", "which transformers 4 has, too"
    call[-1] = str(tmp_path / "deployed")
    wrong = CliRunner().invoke(evaluate_models, call)
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert wrong.stderr == f"error: --output {call[-1]}: exists; give another folder, or remove it\n"


def test_a_stop_at_the_keyboard_says_where_finished_runs_are(
    asked: EvaluationSettings, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.json"
    call = ["--model", str(student), "--task", "sib200", "--lang", "kin", "--results", str(path)]
    call += ["--data", str(asked.data)]

    def stopped_at_once(prepared: Preparation, say: object) -> Evaluation:
        raise KeyboardInterrupt

    def stopped_later(prepared: Preparation, say: object) -> Evaluation:
        path.write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr("comet.evaluate.evaluation.evaluate_prepared", stopped_at_once)
    done = CliRunner().invoke(evaluate_models, call)
    assert (done.exit_code, done.stderr) == (1, "stopped before the first fine-tuning was finished; nothing is kept\n")
    monkeypatch.setattr("comet.evaluate.evaluation.evaluate_prepared", stopped_later)
    done = CliRunner().invoke(evaluate_models, call)
    expected = f"stopped; finished fine-tunings are in {path}, and the same command goes on after them\n"
    assert (done.exit_code, done.stderr) == (1, expected)


def test_the_console_script_starts_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["comet-eval", "--help"])
    with pytest.raises(SystemExit, match="0"):
        comet_eval()
    assert "Fine-tune masked LMs on a task" in capsys.readouterr().out


def test_several_languages_in_one_call(sample_teacher: Path, student: Path, tmp_path: Path) -> None:
    """Each has its own results; the last table has them all, with their mean, from what those files hold."""
    write_topics(tmp_path / "data" / "kin")
    write_topics(tmp_path / "data" / "swa", SIZES | {"test": (35, 47)})
    models = ["--model", str(sample_teacher), "--model", str(student)]
    command = [*models, "--task", "sib200", "--lang", "rw", "--lang", "swa", "--data", str(tmp_path / "data")]
    command += ["--seeds", "1", "--epochs", "1", "--batch-size", "4", "--results", str(tmp_path / "all.json")]
    done = CliRunner().invoke(evaluate_models, command)
    assert done.exit_code == 0, done.output
    scores = []
    for language in ("kin", "swa"):
        stored = json.loads((tmp_path / f"all-{language}.json").read_text())
        scores.append([model["runs"][0]["score"] for model in stored["models"]])
    lines = [line.split() for line in done.stdout.splitlines()[-5:]]
    assert lines[0] == ["weighted", "F1", str(sample_teacher), str(student)]
    for line, language, both in zip(lines[1:3], ("kin", "swa"), scores, strict=True):
        assert line == [language, *(f"{100 * score:.1f}" for score in both)]
    means = [sum(of_model) / 2 for of_model in zip(*scores, strict=True)]
    assert lines[3] == ["mean", *(f"{100 * mean:.1f}" for mean in means)]
    shares = [student / teacher for teacher, student in scores]
    assert lines[4] == ["retained,", "mean", "reference", f"{sum(shares) / 2:.1%}"]


def test_items_longer_than_the_rows_of_a_student(sample_teacher: Path, student: Path, tmp_path: Path) -> None:
    """The teacher has learnt all positions that it has, and inputs of the length of the student's rows have no more."""
    sentences = ["Kigali B-LOC\n" + "umwana O\n" * words for words in (5, 90, 120)]
    for split, number in (("train", 1), ("dev", 3)):
        (tmp_path / f"{split}.txt").write_text("\n".join(sentences[:number]), encoding="utf-8")
    call = ["--model", str(sample_teacher), "--model", str(student), "--task", "masakhaner", "--lang", "kin"]
    call += ["--data", str(tmp_path), "--seeds", "1", "--epochs", "1"]
    whole = CliRunner().invoke(evaluate_models, [*call, "--results", str(tmp_path / "whole.json")])
    assert [line for line in whole.stdout.splitlines() if "rows" in line] == [
        f"{student}: was trained on rows of 64 tokens, where its tokenizer truncates; 2 of 3 items of dev are longer, "
        "and their later tokens are at positions that only fine-tuning trains: build with --seq-len 256 for this task"
    ]
    cut = CliRunner().invoke(evaluate_models, [*call, "--max-length", "64", "--results", str(tmp_path / "cut.json")])
    assert cut.exit_code == 0 and "rows" not in cut.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lang", "rw", "--lang", "kin"], "--lang kin: given twice"),
        (
            ["--lang", "kin", "--lang", "swa", "--output", "best"],
            "--output best: a fine-tuned model is of one language",
        ),
    ],
)
def test_languages_that_do_not_go_together(options: list[str], message: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(evaluate_models, ["--model", "none", "--task", "sib200", *options])
    assert done.exit_code == 2
    assert message in done.stderr
