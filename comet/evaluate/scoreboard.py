"""The summary of an evaluation: lines and a table in the terminal, a page with charts, a model card."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCardData

from cache_tools.progress import duration
from cache_tools.templates import render
from comet.evaluate.datasets import Split, TaskData
from comet.evaluate.metrics import most_frequent_alone, retained
from comet.evaluate.results import ModelResult, Run
from comet.evaluate.settings import EvaluationSettings
from comet.evaluate.tasks import Task
from comet.report.charts import Series, bar_chart, number
from comet.report.origin import origin_of
from comet.report.page import Figure
from comet.report.summary import aligned, counted

COLUMNS = ("model", "score", "retained", "parameters", "MiB", "ms")
BASELINE = "most frequent label"
OVERLAP_SAID_FROM = 0.01  # of the reported items; a few short tweets occur in most splits
NAME_CHARACTERS = 48  # what fits under a chart, for all names together


def measured_line(data: TaskData) -> str:
    """Return a line that names the task and the size of its splits: a score means nothing without them."""
    return f"{_title(data)}: {_splits(data)}"


def _title(data: TaskData) -> str:
    return f"{data.task.title}, {data.language}"


def _splits(data: TaskData) -> str:
    train, reported = data.train, data.reported
    dev = "; there is no test split" if reported.name == "dev" else ""
    measured, learnt = counted(len(reported.examples), "item"), counted(len(train.examples), "item")
    return (
        f"{data.task.metric} on {reported.name} ({measured} of {reported.origin}{dev}), after training on {learnt} of "
        f"{train.origin}"
    )


def plan_line(settings: EvaluationSettings, missing: int) -> str:
    """Return a line on how many fine-tunings there are, `missing` of them still to be done."""
    models, seeds = len(settings.models), settings.seeds
    again = f"; then the best once more, for --output {settings.output}" if settings.output else ""
    return (
        f"fine-tunings to do: {missing:,} of {models * seeds:,} ({counted(models, 'model')} × "
        f"{counted(seeds, 'seed')}), {counted(settings.epochs, 'epoch')} each{again}"
    )


def data_warnings(data: TaskData) -> list[str]:
    """Return lines on what makes a score too high or too low for every model: reported items that are in train, and
    labels that are not."""
    reported, lines = data.reported, []
    items = counted(len(reported.examples), "item")
    if data.learnt_items >= OVERLAP_SAID_FROM * len(reported.examples):
        lines.append(
            f"{data.learnt_items:,} of {items} of {reported.name} are also in train: every model has learnt them, so "
            "the scores are too high"
        )
    known = {label for example in data.train.examples for label in example.labels}
    if unknown := {label for example in reported.examples for label in example.labels} - known:
        affected = sum(not unknown.isdisjoint(example.labels) for example in reported.examples)
        lines.append(
            f"{affected:,} of {items} of {reported.name} have a label that no item of train has, so no model can learn "
            f"it: {', '.join(sorted(unknown))}"
        )
    return lines


def long_items_line(name: str, rows: int, longer: int, reported: Split, max_length: int) -> str:
    """Return a line on the items that are longer than the rows that a student was trained on. They are not cut to that
    length, which would lose labels."""
    return (
        f"{name}: was trained on rows of {rows} tokens, where its tokenizer truncates; {longer:,} of "
        f"{counted(len(reported.examples), 'item')} of {reported.name} are longer, and their later tokens are at "
        f"positions that only fine-tuning trains: build with --seq-len {max_length} for this task"
    )


def time_left_line(seconds_per_ms: float, latencies_ms: Sequence[float]) -> str:
    """Return a line on the time left, assuming that a fine-tuning takes time in proportion to its model's latency."""
    return (
        f"about {duration(seconds_per_ms * sum(latencies_ms))} more for the other {len(latencies_ms):,}, judging by "
        "the speed of each model"
    )


def run_line(task: Task, result: ModelResult, run: Run) -> str:
    alone = f", predicting {run.only_label} everywhere" if run.only_label else ""
    return f"{result.name}, seed {run.seed}: {task.metric} {100 * run.score:.1f} after {run.seconds:.0f} s{alone}"


def _score_text(model: ModelResult) -> str:
    """Return mean and deviation in hundredths, as the field gives them."""
    spread = "" if model.deviation is None else f" ± {100 * model.deviation:.1f}"
    return f"{100 * model.mean:.1f}{spread}"


def _share(share: float) -> str:
    """Return a share of the reference's score; there is none of 0."""
    return "n/a" if math.isnan(share) else f"{share:.1%}"


def _row(model: ModelResult, reference: ModelResult) -> tuple[str, ...]:
    """Return the cells of COLUMNS."""
    return (
        model.name,
        _score_text(model),
        "reference" if model is reference else _share(retained(model.scores, reference.scores)),
        f"{model.parameters:,}",
        f"{model.size_mib:,.1f}",
        f"{model.latency_ms:.1f}",
    )


def _baseline(data: TaskData) -> tuple[str, float]:
    """Return the most frequent label of train, and the score of a model that knows nothing else."""
    train = [example.labels for example in data.train.examples]
    gold = [example.labels for example in data.reported.examples]
    return most_frequent_alone(data.task.score, train, gold)


def _rows(data: TaskData, models: Sequence[ModelResult]) -> list[tuple[str, ...]]:
    """Return the cells of COLUMNS for each model, and for the most frequent label alone."""
    baseline = (BASELINE, f"{100 * _baseline(data)[1]:.1f}", *[""] * len(COLUMNS[2:]))
    return [*(_row(model, models[0]) for model in models), baseline]


def _notes(data: TaskData, models: Sequence[ModelResult]) -> list[str]:
    """Return lines on how to read the table, and on items that were cut for a model."""
    seeds, how = [run.seed for run in models[0].runs], models[0].how
    lines = [
        f"score: {data.task.metric} × 100 on {data.reported.name}, "
        + (f"mean ± standard deviation over {len(seeds)} seeds" if len(seeds) > 1 else f"one seed ({seeds[0]})")
        + f" after {counted(how.epochs, 'epoch')} in batches of {how.batch_size}, the last epoch whatever "
        "its score",
        f"{BASELINE}: {_baseline(data)[0]}, as in train, predicted for every {'word' if data.task.tagging else 'text'}",
        "retained: share of the first model's mean; MiB: weights in float32; ms: a forward pass on one text, median, "
        "one CPU thread",
        "learning rate: " + ", ".join(f"{model.how.learning_rate:.3g} ({model.name})" for model in models),
    ]
    for model in models:
        lines += [
            f"{model.name}, seed {run.seed}: predicts {run.only_label} everywhere, and counts in the mean; try a "
            f"--learning-rate below {model.how.learning_rate:.3g} or more --epochs"
            for run in model.runs
            if run.only_label
        ]
        if model.mean <= _baseline(data)[1]:
            lines.append(f"{model.name}: no better than the most frequent label; try more --epochs")
        if model.truncated or model.unseen:
            words = f"; never shown, and not recognised: {counted(model.unseen, 'word')}" if data.task.tagging else ""
            lines.append(
                f"{model.name}: {model.truncated:,} of {len(data.reported.examples):,} items cut at "
                f"{model.max_length} tokens{words}"
            )
    return lines


def score_table(data: TaskData, models: Sequence[ModelResult]) -> str:
    """Return the last lines of `comet-eval`."""
    return "\n".join([*aligned([COLUMNS, *_rows(data, models)]), *_notes(data, models)])


def scores_by_language(found: Sequence[tuple[TaskData, Sequence[ModelResult]]]) -> str:
    """Return scores by language and model, their means, and the mean share of the first model's score.

    `found` holds the data and the same models in each language.
    """
    models = range(len(found[0][1]))
    means = [statistics.mean(results[model].mean for _, results in found) for model in models]
    shares = [
        statistics.mean(retained(results[model].scores, results[0].scores) for _, results in found) for model in models
    ]
    return "\n".join(
        aligned([
            (found[0][0].task.metric, *(result.name for result in found[0][1])),
            *((data.language, *map(_score_text, results)) for data, results in found),
            ("mean", *(f"{100 * mean:.1f}" for mean in means)),
            ("retained, mean", "reference", *map(_share, shares[1:])),
        ])
    )  # fmt: skip


def best_candidate(models: Sequence[ModelResult]) -> tuple[ModelResult, Run]:
    """Return the best run of the models after the reference, or of the only one, by its score on dev where the reported
    split is another."""
    candidates = [(model, run) for model in (models[1:] or models) for run in model.runs]
    return max(candidates, key=lambda one: one[1].score if one[1].chosen_score is None else one[1].chosen_score)


def finetuned_card(data: TaskData, model: ModelResult, run: Run) -> str:
    """Return the README.md of a fine-tuned model."""
    pipeline = "token-classification" if data.task.tagging else "text-classification"
    origin = origin_of(Path(model.name))
    return render(
        "comet.report", "finetuned.md.jinja", data=data, model=model, run=run, measured=measured_line(data),
        metadata=ModelCardData(
            language=[data.language], license=origin.license, base_model=origin.base_model,
            library_name="transformers", pipeline_tag=pipeline,
        ),
        origin=origin, baseline=_baseline(data),
        over_seeds=_score_text(model), epochs=counted(model.how.epochs, "epoch"),
    )  # fmt: skip


def score_page(data: TaskData, models: Sequence[ModelResult]) -> str:
    """Return the evaluation as HTML: one file, without scripts, that opens without network."""
    rows = _rows(data, models)
    shown = [model.name.rstrip("/").split("/")[-1][-NAME_CHARACTERS // len(models) :] for model in models]

    def chart(title: str, note: str, column: int, values: Sequence[float]) -> Figure:
        cells = rows[: len(models)]
        names = [(str(n), name, row[column]) for n, (name, row) in enumerate(zip(shown, cells, strict=True), 1)]
        tooltips = [f"{row[0]}: {row[column]}" for row in cells]
        return Figure(title, bar_chart(title, names, [Series("student", title, values, tooltips)], "", number), note)

    return render(
        "comet.report", "evaluation.html.jinja", title=_title(data), columns=("#", *COLUMNS),
        rows=[(str(n) if n <= len(models) else "", *cells) for n, cells in enumerate(rows, 1)],
        measured=_splits(data), notes=_notes(data, models), models=models,
        figures=[
            chart(f"{data.task.metric} × 100", "more is better", 1, [100 * model.mean for model in models]),
            chart("MiB of weights", "less is better", 4, [model.size_mib for model in models]),
            chart("ms a text", "less is better", 5, [model.latency_ms for model in models]),
        ],
    )  # fmt: skip
