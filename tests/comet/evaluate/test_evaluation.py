"""comet-eval as a whole: real models, real fine-tunings, one file of results that resumes, a table, a page, a model."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.html_tree import Tree
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cache_tools.errors import CometError
from comet.evaluate.datasets import load_task
from comet.evaluate.evaluation import Evaluation, evaluate, latency_ms
from comet.evaluate.finetuning import FineTuning, encode, fine_tune, load_for_task, predict
from comet.evaluate.metrics import retained, retained_interval
from comet.evaluate.results import ModelResult, Run
from comet.evaluate.scoreboard import best_candidate, run_line, score_page, score_table, scores_by_language
from comet.evaluate.settings import EvaluationSettings
from comet.evaluate.tasks import find_task


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def evaluation(asked: EvaluationSettings, said: list[str]) -> Evaluation:
    return evaluate(asked, said.append)


@pytest.mark.slow
def test_scores_are_those_of_the_predictions_in_the_file(evaluation: Evaluation, asked: EvaluationSettings) -> None:
    content = json.loads(evaluation.results.read_text(encoding="utf-8"))
    task = evaluation.data.task
    assert content["gold"] == [list(example.labels) for example in evaluation.data.reported.examples]
    for name, model, stored in zip(asked.models, evaluation.models, content["models"], strict=True):
        assert (name, [0, 1]) == (model.name, [run.seed for run in model.runs])
        for run, of_file in zip(model.runs, stored["runs"], strict=True):
            assert run.score == of_file["score"] == task.score(content["gold"], of_file["predictions"])
    assert evaluation.models[0].mean > 0.9  # the teacher has learnt it
    assert all(run.chosen_score != run.score for run in evaluation.models[0].runs)
    low, high = retained_interval(
        task.score,
        content["gold"],
        *([run["predictions"] for run in one["runs"]] for one in content["models"][::-1]),
        50,
    )
    assert low <= retained(evaluation.models[1].scores, evaluation.models[0].scores) <= high


def test_a_run_is_what_fine_tuning_by_hand_gives(evaluation: Evaluation, asked: EvaluationSettings) -> None:
    result = evaluation.models[1]
    data = load_task(find_task("sib200"), "kin", asked.data)
    model, tokenizer = load_for_task(result.name, data.task, 1)
    cpu = torch.device("cpu")
    fine_tune(model, encode(tokenizer, data.train.examples, data.task, 128), data.task, result.how, 1, cpu, "it")
    for split, score in ((data.reported, result.runs[1].score), (data.chosen_on, result.runs[1].chosen_score)):
        assert split is not None
        encoded = encode(tokenizer, split.examples, data.task, 128)
        assert data.task.score(encoded.labels, predict(model, encoded, data.task, 4, cpu)) == score


def test_sizes_and_latencies_are_measured(evaluation: Evaluation, asked: EvaluationSettings) -> None:
    teacher, student = evaluation.models
    assert asked.output is not None
    deployed = AutoModelForSequenceClassification.from_pretrained(asked.output)
    assert student.parameters == sum(p.numel() for p in deployed.parameters()) < teacher.parameters
    assert student.size_mib == pytest.approx(
        (asked.output / "model.safetensors").stat().st_size / 2**20, abs=0.02
    )  # the header of the file
    assert 0 < student.latency_ms < teacher.latency_ms
    assert student.how.learning_rate == 5e-4 and teacher.sha256 != student.sha256


def test_latency_grows_with_work_and_leaves_the_threads_alone(sample_teacher: Path) -> None:
    model, _ = load_for_task(str(sample_teacher), find_task("sib200"), 0)
    threads = torch.get_num_threads()
    short, long = (
        [{"input_ids": torch.full((1, n), 7), "attention_mask": torch.ones(1, n, dtype=torch.int64)}] * 4
        for n in (8, 256)
    )
    fast, slow = latency_ms([model, model], [short, long])
    assert 2 * fast < slow and torch.get_num_threads() == threads


def test_the_best_student_is_left_to_deploy(evaluation: Evaluation, asked: EvaluationSettings) -> None:
    """It predicts with plain transformers what the file says, from a folder without pickle."""
    assert asked.output is not None
    result, run = best_candidate(evaluation.models)
    assert result is evaluation.models[1]
    files = {path.name for path in asked.output.iterdir()}
    assert files == {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    model = AutoModelForSequenceClassification.from_pretrained(asked.output).eval()
    tokenizer = AutoTokenizer.from_pretrained(asked.output)
    texts = [example.parts[0] for example in evaluation.data.reported.examples]
    with torch.no_grad():
        best = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.argmax(-1)
    assert [[model.config.id2label[int(i)]] for i in best] == run.predictions
    card = (asked.output / "README.md").read_text(encoding="utf-8")
    assert "student, fine-tuned for SIB-200" in card and f"{100 * run.score:.1f}, with seed {run.seed}" in card
    assert "best on dev" in card
    assert [path.name for path in asked.output.parent.iterdir() if path.name[0] == "."] == [".results.json.lock"]
    assert tokenizer.model_max_length == 128, "the length it was fine-tuned with"


def test_the_table_says_what_was_measured(evaluation: Evaluation, said: list[str]) -> None:
    assert said[0] == (
        "SIB-200 (topics of sentences), kin: weighted F1 on test (12 items of test.tsv), after training on 24 items of "
        "train.tsv"
    )
    assert said[1] == (
        f"fine-tunings to do: 4 of 4 (2 models × 2 seeds), 2 epochs each; then the best once more, for --output "
        f"{evaluation.results.with_name('deployed')}"
    )
    assert [line.split(":")[0] for line in (said[2], *said[4:7])] == [
        f"{m.name}, seed {s}" for m in evaluation.models for s in (0, 1)
    ]
    assert re.fullmatch(r"about \d+ s more for the other 3, judging by the speed of each model", said[3])
    teacher, student = evaluation.models
    lines = score_table(evaluation.data, evaluation.models).splitlines()
    assert lines[0].split() == ["model", "score", "retained", "parameters", "MiB", "ms"]
    assert re.split(r"\s{2,}", lines[1])[:4] == [
        teacher.name, f"{100 * teacher.mean:.1f} ± {100 * (teacher.deviation or 0):.1f}", "reference",
        f"{teacher.parameters:,}",
    ]  # fmt: skip
    assert f"{student.mean / teacher.mean:.1%}" in lines[2]
    assert re.split(r"\s{2,}", lines[3]) == ["most frequent label", "33.3"]  # half of the items, of two labels
    assert "over 2 seeds after 2 epochs in batches of 4, the last epoch whatever its score" in lines[4]
    assert lines[5] == "most frequent label: sports, as in train, predicted for every text"
    assert f"0.0005 ({student.name})" in lines[7]
    assert [line for line in lines[8:] if ", seed " not in line] == [
        f"{model.name}: no better than the most frequent label; try more --epochs"
        for model in evaluation.models
        if model.mean <= 1 / 3
    ]
    hopeless = score_table(evaluation.data, [replace(teacher, runs=tuple(replace(r, score=0.3) for r in teacher.runs))])
    assert f"{teacher.name}: no better than the most frequent label" in hopeless


def test_a_fine_tuning_that_learnt_nothing_is_said(evaluation: Evaluation) -> None:
    """Its score is that of the most frequent label, and in a mean of several seeds only a lower number."""
    model, data = evaluation.models[0], evaluation.data
    good, failed = model.runs
    failed = replace(failed, predictions=[["sports"] for _ in failed.predictions])
    assert run_line(data.task, model, good).endswith(" s")
    assert run_line(data.task, model, failed).endswith(" s, predicting sports everywhere")
    table = score_table(data, [replace(model, runs=(good, failed))])
    assert [line for line in table.splitlines() if line.startswith(f"{model.name}, seed")] == [
        f"{model.name}, seed 1: predicts sports everywhere, and counts in the mean; try a "
        f"--learning-rate below {model.how.learning_rate:.3g} or more --epochs"
    ]


def test_nothing_is_a_share_of_a_reference_that_scores_0(evaluation: Evaluation) -> None:
    teacher, student = evaluation.models
    hopeless = replace(teacher, runs=tuple(replace(run, score=0.0) for run in teacher.runs))
    row = score_table(evaluation.data, [hopeless, student]).splitlines()[2]
    assert re.split(r"\s{2,}", row)[2] == "n/a"
    last = scores_by_language([(evaluation.data, [hopeless, student])]).splitlines()[-1]
    assert re.split(r"\s{2,}", last) == ["retained, mean", "reference", "n/a"]


def test_one_seed_has_no_deviation_and_cut_items_are_said(evaluation: Evaluation) -> None:
    one = replace(evaluation.models[0].of_seeds([0]), truncated=3, max_length=16)
    table = score_table(evaluation.data, [one])
    assert "±" not in table.splitlines()[1] and "one seed (0)" in table
    assert f"{one.name}: 3 of 12 items cut at 16 tokens" in table and "words" not in table
    tagging = replace(evaluation.data, task=replace(evaluation.data.task, tagging=True))
    assert "cut at 16 tokens; never shown, and not recognised: 7 words" in score_table(
        tagging, [replace(one, unseen=7)]
    )


def test_the_page_is_whole_and_loads_nothing(evaluation: Evaluation) -> None:
    html = evaluation.page.read_text(encoding="utf-8")
    tree = Tree(html)
    assert evaluation.page.name == "results.html"
    assert tree.of("strong") == ["weighted F1 × 100", "MiB of weights", "ms a text"]
    assert [tag for tag, _ in tree.elements].count("rect") == 6
    assert tree.of("p")[0].startswith("Weighted F1 on test (12 items of test.tsv), after")
    cells = tree.of("td")
    assert {"most frequent label", "33.3"} <= set(cells)
    assert [a["data-name"] for tag, a in tree.elements if tag == "td" and "data-name" in a][:3] == [
        "#",
        "model",
        "score",
    ]
    teacher = evaluation.models[0]
    assert f"{100 * teacher.mean:.1f} ± {100 * (teacher.deviation or 0):.1f}" in tree.of("text")
    for n, model in enumerate(evaluation.models, 1):
        assert {str(n), model.name, f"{model.parameters:,}"} <= set(cells)
    assert not {tag for tag, _ in tree.elements} & {"script", "link", "iframe", "img"}
    assert not re.search(r"url\(|@import|https?://", html)


def test_names_of_models_cannot_become_markup(evaluation: Evaluation) -> None:
    hostile = replace(evaluation.models[0], name='"><script>alert(1)</script>')
    tree = Tree(score_page(evaluation.data, [hostile]))
    assert "script" not in {tag for tag, _ in tree.elements}


def test_a_second_call_repeats_nothing_and_adds_seeds_and_models(
    evaluation: Evaluation, asked: EvaluationSettings, student: Path, tmp_path: Path
) -> None:
    path = shutil.copy(evaluation.results, tmp_path / "results.json")
    again = replace(asked, results=path, output=None)
    said: list[str] = []
    repeated = evaluate(again, said.append)
    assert len(said) == 1 and [m.runs for m in repeated.models] == [m.runs for m in evaluation.models]
    more = evaluate(replace(again, seeds=3, models=(str(student),)), said.append)
    assert "fine-tunings to do: 1 of 3 (1 model × 3 seeds), 2 epochs each" in said
    assert [line for line in said if ", seed " in line] == [said[-1]] and ", seed 2: weighted F1" in said[-1]
    assert more.models[0].runs[:2] == evaluation.models[1].runs and len(more.models) == 1
    assert len(json.loads(path.read_text(encoding="utf-8"))["models"]) == 2  # the other one is kept
    assert [len(m.runs) for m in evaluate(again, said.append).models] == [2, 2]  # of seeds 0 and 1 alone


def test_a_stopped_evaluation_goes_on_where_it_was(asked: EvaluationSettings, student: Path, tmp_path: Path) -> None:
    alone = replace(asked, models=(str(student),), results=tmp_path / "r.json", output=None, epochs=1)

    def stop_after_a_run(line: str) -> None:
        if ", seed 0:" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(alone, stop_after_a_run)
    said: list[str] = []
    found = evaluate(alone, said.append)
    assert said[1] == "fine-tunings to do: 1 of 2 (1 model × 2 seeds), 1 epoch each"
    assert [line.split(", ")[1][:6] for line in said[2:]] == ["seed 1"]
    assert [run.seed for run in found.models[0].runs] == [0, 1]


def test_results_of_other_settings_are_refused_field_by_field(
    evaluation: Evaluation, asked: EvaluationSettings, folder: Path
) -> None:
    other = replace(asked, output=None, epochs=7, max_length=32)
    with pytest.raises(
        CometError, match=r"was made with epochs 2, now 7; max_length None, now 32; give another"
    ) as caught:
        evaluate(other, print)
    assert caught.value.exit_code == 2
    changed = shutil.copytree(folder / "data", folder / "changed")
    test = changed / "kin" / "test.tsv"
    test.write_text(test.read_text(encoding="utf-8").replace("Kigali", "Huye"), encoding="utf-8")
    with pytest.raises(CometError, match="was made with other texts or labels in test than there are now; give"):
        evaluate(replace(asked, output=None, data=changed), print)


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"format": 2}', '{"format": 1, "subject": {"a": 1}, "models": []}']
)
def test_a_foreign_results_file_is_refused_and_kept(content: str, asked: EvaluationSettings, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(CometError, match=r"r.json: not a file of comet-eval, or damaged \("):
        evaluate(replace(asked, results=path, output=None), print)
    assert path.read_text(encoding="utf-8") == content


def test_a_changed_model_under_the_same_name_is_another_one(
    asked: EvaluationSettings, sample_teacher: Path, student: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    alone = replace(asked, models=(str(model),), results=tmp_path / "r.json", output=None, seeds=1, epochs=1)
    shutil.copytree(student, model)
    before = evaluate(alone, lambda line: None).models[0]
    shutil.rmtree(model)
    shutil.copytree(sample_teacher, model)
    after = evaluate(alone, lambda line: None).models[0]
    assert before.parameters < after.parameters and before.runs != after.runs


def test_equal_weights_under_two_names_are_not_compared(
    asked: EvaluationSettings, student: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(student, tmp_path / "copy")
    (tmp_path / "link").symlink_to(student)
    for other in (copied, tmp_path / "link", student / ".." / student.name):
        given = replace(asked, models=(str(student), str(other)), results=tmp_path / "r.json", output=None)
        with pytest.raises(CometError, match=f"--model {other}: has the same weights as {student}; give one of them"):
            evaluate(given, lambda line: None)
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (2, "--max-length 2: expected 3 to 512 for .*, which adds 2 special tokens and reads at most 512"),
        (513, "--max-length 513: expected 3 to 512 for "),
    ],
)
def test_a_length_that_holds_no_word_or_is_too_long(asked: EvaluationSettings, length: int, message: str) -> None:
    with pytest.raises(CometError, match=message) as caught:
        evaluate(replace(asked, results=asked.data.parent / "no.json", output=None, max_length=length), print)  # type: ignore[union-attr]
    assert caught.value.exit_code == 2 and not (asked.data.parent / "no.json").exists()  # type: ignore[union-attr]


def test_mean_and_sample_deviation(evaluation: Evaluation) -> None:
    one = replace(
        evaluation.models[0], runs=tuple(Run(seed, score, None, 1.0, []) for seed, score in enumerate((0.5, 0.7)))
    )
    assert one.mean == pytest.approx(0.6) and one.deviation == pytest.approx(0.02**0.5)
    assert "60.0 ± 14.1" in score_table(evaluation.data, [one])


def test_the_best_run_is_chosen_on_dev_unless_dev_is_reported(evaluation: Evaluation) -> None:
    def model(*runs: tuple[float, float | None]) -> ModelResult:
        made = tuple(Run(seed, score, chosen, 1.0, []) for seed, (score, chosen) in enumerate(runs))
        return replace(evaluation.models[0], runs=made, how=FineTuning(1, 1, 1.0))

    reference, first, second = model((0.9, 0.9)), model((0.7, 0.5), (0.6, 0.8)), model((0.8, 0.6))
    assert best_candidate([reference, first, second]) == (first, first.runs[1])
    assert best_candidate([reference]) == (reference, reference.runs[0])
    assert best_candidate([model((0.7, None), (0.8, None))])[1].seed == 1


@pytest.mark.slow
def test_real_sentences_are_learnt(shared: Path, sample_teacher: Path, tmp_path: Path) -> None:
    """On a part of MasakhaPOS the model is far better than the most frequent tag."""
    task = find_task("masakhapos")
    data = load_task(task, "kin", shared / "data" / "masakhapos")
    for split in (data.train, data.reported):
        sentences = [zip(e.parts, e.labels, strict=True) for e in split.examples[:100]]
        blocks = ["\n".join(f"{word} {tag}" for word, tag in sentence) for sentence in sentences]
        (tmp_path / f"{split.name}.txt").write_text("\n\n".join(blocks), encoding="utf-8")
    few = EvaluationSettings((str(sample_teacher),), task.name, "kin", tmp_path, tmp_path / "r.json", seeds=1, epochs=3)
    (model,) = evaluate(few, lambda line: None).models
    gold = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["gold"]
    majority = max(task.score(gold, [[label] * len(item) for item in gold]) for label in task.labels)
    assert model.mean > majority + 0.2
