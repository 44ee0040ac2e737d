"""What a person is told of an evaluation: lines and a table in the terminal, a page with charts, a model card."""

from collections.abc import Callable, Sequence

from comet.evaluate.datasets import TaskData
from comet.evaluate.metrics import retained
from comet.evaluate.results import ModelResult, Run
from comet.evaluate.tasks import Task
from comet.report.charts import Series, bar_chart, number
from comet.report.page import document, escape_text, fact, figure

COLUMNS = ("model", "score", "retained", "parameters", "MiB", "ms")
NAME_CHARACTERS = 48  # what fits under a chart, for all names together


def what_is_measured(data: TaskData) -> str:
    """The split and its size first: a score means nothing without them."""
    train, reported = data.train, data.reported
    dev = "; there is no test split" if reported.name == "dev" else ""
    return (
        f"{data.task.title}, {data.language}: {data.task.metric} on {reported.name} "
        f"({len(reported.examples):,} items of {reported.origin}{dev}), after training on "
        f"{len(train.examples):,} items of {train.origin}"
    )


def run_line(task: Task, result: ModelResult, run: Run) -> str:
    return f"{result.name}, seed {run.seed}: {task.metric} {100 * run.score:.1f} after {run.seconds:.0f} s"


def score_text(model: ModelResult) -> str:
    """Mean and deviation in hundredths, as the field gives them."""
    spread = "" if model.deviation is None else f" ± {100 * model.deviation:.1f}"
    return f"{100 * model.mean:.1f}{spread}"


def retained_text(model: ModelResult, reference: ModelResult) -> str:
    return "reference" if model is reference else f"{retained(model.scores, reference.scores):.1%}"


def row(model: ModelResult, reference: ModelResult) -> tuple[str, ...]:
    """The cells of COLUMNS."""
    return (
        model.name,
        score_text(model),
        retained_text(model, reference),
        f"{model.parameters:,}",
        f"{model.size_mib:,.1f}",
        f"{model.latency_ms:.1f}",
    )


def notes(data: TaskData, models: Sequence[ModelResult]) -> list[str]:
    """How to read the table, and what of the items the models could not be shown."""
    seeds = [run.seed for run in models[0].runs]
    how = models[0].how
    lines = [
        f"score: {data.task.metric} × 100 on {data.reported.name}, "
        + (f"mean ± standard deviation over {len(seeds)} seeds" if len(seeds) > 1 else f"one seed ({seeds[0]})")
        + f" after {epochs(how.epochs)} in batches of {how.batch_size}, the last epoch whatever its score",
        "retained: share of the first model's mean; MiB: weights in float32; ms: a forward pass on one text, median, "
        "one CPU thread",
        "learning rate: " + ", ".join(f"{model.how.learning_rate:.3g} ({model.name})" for model in models),
    ]
    for model in models:
        if model.truncated or model.unseen:
            words = (
                f"; {model.unseen:,} words were never shown and count as not recognised" if data.task.tagging else ""
            )
            lines.append(
                f"{model.name}: {model.truncated:,} of {len(data.reported.examples):,} items cut at "
                f"{model.max_length} tokens{words}"
            )
    return lines


def epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"


def score_table(data: TaskData, models: Sequence[ModelResult]) -> str:
    """The last lines of `comet-eval`."""
    cells = [COLUMNS, *(row(model, models[0]) for model in models)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    ]
    return "\n".join([*lines, *notes(data, models)])


def best_candidate(models: Sequence[ModelResult]) -> tuple[ModelResult, Run]:
    """The best run of the models after the reference, or of the only one; judged on dev where that is not reported."""
    candidates = [(model, run) for model in (models[1:] or models) for run in model.runs]
    return max(candidates, key=lambda one: one[1].score if one[1].chosen_score is None else one[1].chosen_score)


def finetuned_card(data: TaskData, model: ModelResult, run: Run) -> str:
    """The README.md of a fine-tuned model."""
    task, how = data.task, model.how
    judged = (
        "dev" if run.chosen_score is not None else f"{data.reported.name}, the split reported here, for want of others"
    )
    return f"""---
library_name: transformers
pipeline_tag: {"token-classification" if task.tagging else "text-classification"}
language: [{data.language}]
---
# {model.name.rstrip("/").split("/")[-1]}, fine-tuned for {task.title}

{what_is_measured(data)}: {100 * run.score:.1f}, with seed {run.seed}.

Of the seeds {", ".join(str(one.seed) for one in model.runs)} this is the best on {judged}; over all of them the
{task.metric} is {score_text(model)}. {epochs(how.epochs).capitalize()}, batches of {how.batch_size}, peak learning rate
{how.learning_rate:.3g}, at most {model.max_length} tokens. Labels: {", ".join(task.labels)}.

The data has a licence of its own, which may not allow every use: {task.source}
"""


def chart(title: str, models: Sequence[ModelResult], values: Sequence[float], note: str, cell: int) -> str:
    """A bar a model, in the order of the table; `cell` is the column that says its value on hovering."""
    names = [(str(n), model.name[-NAME_CHARACTERS // len(models) :]) for n, model in enumerate(models, 1)]
    cells = [row(model, models[0])[cell] for model in models]
    hover = [f"{model.name}: {text}" for model, text in zip(models, cells, strict=True)]
    return figure(title, bar_chart(title, names, [Series("student", title, values, hover)], "", number), note)


def score_page(data: TaskData, models: Sequence[ModelResult]) -> str:
    """The whole evaluation as HTML: one file, without scripts, that opens without network."""
    charts: list[tuple[str, Callable[[ModelResult], float], str, int]] = [
        (f"{data.task.metric} × 100", lambda model: 100 * model.mean, "more is better", 1),
        ("MiB of weights", lambda model: model.size_mib, "less is better", 4),
        ("ms a text", lambda model: model.latency_ms, "less is better", 5),
    ]
    title = f"{data.task.title}, {data.language}"
    heads = "".join(f"<th>{escape_text(name)}</th>" for name in ("", *COLUMNS))
    lines = "".join(
        f"<tr><td>{n}</td>" + "".join(f"<td>{escape_text(cell)}</td>" for cell in row(model, models[0])) + "</tr>"
        for n, model in enumerate(models, 1)
    )
    runs = "".join(
        fact(f"{model.name}, seed {run.seed}", f"{100 * run.score:.2f} after {run.seconds:.0f} s")
        for model in models
        for run in model.runs
    )
    return document(
        title,
        f"""<p>{escape_text(what_is_measured(data))}.</p>
<div class="grid">{"".join(chart(name, models, [of(m) for m in models], note, c) for name, of, note, c in charts)}</div>
<h2>Models</h2>
<div class="card wide"><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>
{"".join(f"<p>{escape_text(line)}.</p>" for line in notes(data, models))}
<h2>Runs</h2>
<table class="facts">{runs}</table>
""",
    )
