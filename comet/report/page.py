"""OUTPUT.html: the results of a training as charts and tables, in one file without scripts that opens offline."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from cache_tools.templates import render
from comet.report.analysis import Analysis, MapPair, by_frequency, calibration, expected_calibration_error
from comet.report.charts import Line, Point, Series, bar_chart, heat_map, line_chart, number, percent
from comet.report.summary import BY_CACHE, counted, measures, smaller
from comet.train.validation import Validation

MOST_POINTS = 240
FEW = 30  # targets below which an accuracy says little
FREQUENCY = "occurrences of the true token; below, targets"
PART_NAMES = {
    "loss": "Whole loss, weighted",
    "kd": "Logits: KL to the teacher × T²",
    "hard": "Labels: cross-entropy",
    "attention": "Attention",
}


@dataclass(frozen=True)
class History:
    """A training: (step, parts of the loss) and (step, validation) in the order of steps, and the best step, chosen by
    the masked-token loss if only labels were learnt."""

    losses: list[tuple[int, dict[str, float]]]
    validations: list[tuple[int, Validation]]
    best_step: int
    learns_labels: bool = False


@dataclass(frozen=True)
class Figure:
    """A chart under its title; `keys` are (class, name) of its colours."""

    title: str
    svg: str
    note: str = ""
    keys: Sequence[tuple[str, str]] = ()


def page(
    title: str,
    facts: list[tuple[str, str]],
    kl_note: str,
    history: History,
    before: Validation,
    after: Validation,
    analysis: Analysis,
    by_cache: Sequence[tuple[str, ...]] = (),
    notes: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Return the report as HTML. `kl_note` says how the KL is measured; `facts` are names and values for a table;
    `by_cache` the cells under `BY_CACHE`, one row for each of several caches; `notes` are on parts of the loss."""
    looked, first = len(analysis.target_id), "the first of each cache," if by_cache else "the first"
    return render(
        "comet.report", "page.html.jinja", title=title, facts=facts, kl_note=kl_note, analysis=analysis,
        best_step=history.best_step, targets=after.targets, measures=measures(before, after),
        header=BY_CACHE, by_cache=by_cache, smaller=smaller(analysis.parameters, analysis.teacher_parameters),
        some=f"{first} {looked:,} of {after.targets:,}" if looked < after.targets else f"{looked:,}",
        training=[*_validation_curve(history), *_loss_curves(history, notes)],
        frequency=_frequency(analysis), calibration=_calibration_charts(analysis),
        maps=[(pair, _pictures(pair)) for pair in analysis.maps],
        rows=[(row, {masked.position: n for n, masked in enumerate(row.positions, 1)}) for row in analysis.examples],
    )  # fmt: skip


def _validation_curve(history: History) -> list[Figure]:
    """Return the chart of the measure that the best step was chosen by, over steps; none if nothing was measured."""
    by_labels = history.learns_labels or any(math.isnan(v.kl) for _, v in history.validations)
    every = [(step, v.cross_entropy if by_labels else v.kl) for step, v in history.validations]
    measured = [(step, value) for step, value in every if math.isfinite(value)]
    if not measured:
        return []
    name = "Masked-token loss, validation" if by_labels else "Validation KL"
    notes = [f"step {step:,}: {value:.4f}" for step, value in measured]
    best = next(((p, f"best: {p[1]:.3f}") for p in measured if p[0] == history.best_step), None)
    line = Line("student", name, measured, notes, dots=len(measured) <= 40)
    return [Figure(name, line_chart(name, [line], "step", mark=best), "nats")]


def _loss_curves(history: History, notes: Mapping[str, str]) -> Iterator[Figure]:
    """Yield a chart of each part of the loss, with the note on it."""
    for name in dict.fromkeys(name for _, parts in history.losses for name in parts):
        points = [(step, parts[name]) for step, parts in history.losses if math.isfinite(parts.get(name, math.nan))]
        if points:
            title = f"{PART_NAMES.get(name, name)}, training"
            yield Figure(title, line_chart(title, [Line("student", name, thin(points))], "step"), notes.get(name, ""))


def thin(points: Sequence[Point]) -> list[Point]:
    """Return at most MOST_POINTS points, each the mean of equally many neighbours; the last may have fewer."""
    size = -(-len(points) // MOST_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _frequency(analysis: Analysis) -> list[Figure]:
    """Return charts of KL and accuracy by how often the label occurs in the corpus."""
    bins = by_frequency(analysis)
    if not bins:
        return []
    names = [(f"≥ {number(b.low)}" if b.low else "< 10", number(b.targets)) for b in bins]
    spans = [f"{b.low:,} to {b.high:,} times, {counted(b.targets, 'target')}" for b in bins]
    kl = {"student": [b.kl for b in bins]}
    accuracy = {"student": [b.accuracy for b in bins], "teacher": [b.teacher_accuracy for b in bins]}
    charts = [_bars("Validation KL", "nats", FREQUENCY, names, spans, kl)] if np.isfinite(kl["student"]).all() else []
    return [*charts, _bars("Accuracy", "", FREQUENCY, names, spans, accuracy, percent)]


def _bars(
    title: str, note: str, x_name: str, names: Sequence[Sequence[str]], spans: Sequence[str],
    values: Mapping[str, Sequence[float]], show: Callable[[float], str] = number,
) -> Figure:  # fmt: skip
    """Return a chart of bars side by side, one for each model in `values`; `spans` name the groups in tooltips."""
    series = [
        Series(model, model, ys, [f"{model}, {span}: {show(y)}" for span, y in zip(spans, ys, strict=True)])
        for model, ys in values.items()
    ]
    keys = [(model, model) for model in values] if len(values) > 1 else []
    return Figure(title, bar_chart(title, names, series, x_name, show), note, keys)


def _calibration_charts(analysis: Analysis) -> list[Figure]:
    """Return the reliability diagram of student and teacher, and the distribution of their confidence."""
    models = {
        "student": calibration(analysis.confidence, analysis.correct),
        "teacher": calibration(analysis.teacher_confidence, analysis.teacher_correct),
    }
    if not models["student"]:
        return []
    lines, keys, shares = [Line("ideal", "", [(0.0, 0.0), (1.0, 1.0)])], [], {}
    for model, bins in models.items():
        points = [(b.confidence, b.accuracy) for b in bins]
        notes = [f"{model}, {counted(b.targets, 'target')}: {b.accuracy:.1%} right at {b.confidence:.1%}" for b in bins]
        lines.append(Line(model, model, points, notes, dots=True, hollow=[b.targets < FEW for b in bins]))
        keys.append((model, f"{model}, ECE {expected_calibration_error(bins):.3f}"))
        found = {round(10 * b.high): b.targets / len(analysis.confidence) for b in bins}
        shares[model] = [found.get(n, 0.0) for n in range(1, 11)]
    probability, unit = "probability of the best token", (0.0, 1.0)
    diagram = line_chart("reliability", lines, probability, unit, unit, percent)
    note = f"ECE: expected calibration error; hollow: below {FEW} targets"
    names = [(f"≤ {n}0" if n == 1 else f"{n}0",) for n in range(1, 11)]
    spans = [f"{n - 1}0 to {n}0%" for n in range(1, 11)]
    confidence = _bars("Confidence", "share of the targets", f"{probability}, up to … %", names, spans, shares, percent)
    return [Figure("Reliability", diagram, note, keys), confidence]


def _pictures(pair: MapPair) -> list[tuple[str, int, str]]:
    """Return (model, layer, PNG as a data URL) of the two maps of a pair, on one scale."""
    most = float(max(pair.teacher.max(), pair.student.max())) ** 0.5
    sides = (("teacher", pair.teacher_layer, pair.teacher), ("student", pair.student_layer, pair.student))
    return [(model, layer, heat_map(values.clip(0) ** 0.5, most)) for model, layer, values in sides]
