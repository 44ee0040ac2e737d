"""report.html: what a person looks at after a training. One file, without scripts, that opens without network.

Whatever comes from a cache goes through `escape_text`, and the page forbids itself to load or run anything.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from comet.report.analysis import (
    Analysis,
    AnnotatedRow,
    CalibrationBin,
    Guess,
    MapPair,
    by_frequency,
    calibration,
    expected_calibration_error,
)
from comet.report.charts import Line, Point, Series, bar_chart, heat_map, line_chart, number, percent
from comet.report.style import STYLE
from comet.train.validation import Validation

MOST_POINTS = 240
FEW = 30  # targets below which an accuracy says little
FREQUENCY = "occurrences of the true token; below, targets"
PART_NAMES = {
    "loss": "Whole loss, weighted",
    "kd": "Logits: KL to the teacher × T²",
    "hard": "True tokens: cross-entropy",
    "attention": "Attention maps",
}
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class History:
    """A training: (step, parts of the loss) and (step, validation) in the order of steps, and the best step."""

    losses: list[tuple[int, dict[str, float]]]
    validations: list[tuple[int, Validation]]
    best_step: int


def document(title: str, body: str) -> str:
    """A whole page of HTML: one file, without scripts, that opens without network. `body` follows the title."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{escape_text(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{escape_text(title)}</h1>
{body}</main>
</body>
</html>
"""


def page(
    title: str,
    facts: list[tuple[str, str]],
    kl_name: str,
    history: History,
    before: Validation,
    after: Validation,
    analysis: Analysis,
) -> str:
    """The whole report as HTML. `kl_name` says what the KL is, `facts` are names and values for the last table."""
    looked = len(analysis.target_id)
    some = f"the first {looked:,} of {after.targets:,}" if looked < after.targets else f"{looked:,}"
    return document(
        title,
        f"""<p>Measured on {after.targets:,} masked tokens of validation text. {best_student(history)}</p>
{headline(kl_name, before, after, analysis)}
<h2>Training</h2>
<div class="grid">{validation_curve(kl_name, history)}{loss_curves(history)}</div>
<h2>Frequent and rare tokens</h2>
<p>{some.capitalize()} validation targets by how often the true token occurs in the corpus.</p>
<div class="grid">{frequency(kl_name, analysis)}</div>
<h2>Calibration</h2>
<p>Is a prediction made with a probability of 70% right in 70% of the cases? Over {some} validation targets. Above
the dashed line a model is more often right than it says, below it less often.</p>
<div class="grid">{calibration_charts(analysis)}</div>
{attention(analysis.maps)}
<h2>Guesses</h2>
<p>Rows as both models saw them, ▁ where a word begins. Marked are the tokens to guess: most are masked, some replaced
by others or left as they are. Green is right.</p>
{"".join(guesses(example, n) for n, example in enumerate(analysis.examples, 1))}
<h2>What made this student</h2>
<table class="facts">{"".join(fact(*pair) for pair in facts)}</table>
""",
    )


def escape_text(text: str) -> str:
    """Text as HTML text or attribute value, its control characters and lone surrogates replaced."""
    return escape(UNPRINTABLE.sub("\ufffd", text))


def best_student(history: History) -> str:
    if history.best_step == 0:
        return "No epoch brought the student nearer to its teacher: it is as it began."
    return f"The student is that of step {history.best_step:,}, where it was nearest to its teacher."


def figure(title: str, picture: str, note: str = "", keys: Sequence[tuple[str, str]] = ()) -> str:
    """A chart under its title; `keys` are (class, name) of its colours."""
    lines = [f"<strong>{escape_text(title)}</strong>", *([f"<small>{escape_text(note)}</small>"] if note else [])]
    lines += [f'<span class="key {kind}">{escape_text(name)}</span>' for kind, name in keys]
    return f"<figure><figcaption>{''.join(lines)}</figcaption>{picture}</figure>"


def headline(kl_name: str, before: Validation, after: Validation, analysis: Analysis) -> str:
    parameters, of_teacher = analysis.parameters, analysis.teacher_parameters
    tiles = [
        (f"{kl_name} to the teacher", nats(after.kl), [f"before {nats(before.kl)}"]),
        ("masked-token loss, nats", nats(after.cross_entropy), [f"before {nats(before.cross_entropy)}"]),
        (
            "masked-token accuracy",
            f"{after.accuracy:.1%}",
            [f"before {before.accuracy:.1%}", f"teacher {after.teacher_accuracy:.1%}"],
        ),
        ("same best token as the teacher", f"{after.agreement:.1%}", [f"before {before.agreement:.1%}"]),
        ("parameters", f"{parameters:,}", [f"teacher {of_teacher:,}", f"{1 - parameters / of_teacher:.0%} smaller"]),
    ]
    return '<dl class="tiles">{}</dl>'.format(
        "".join(
            f"<div><dt>{escape_text(name)}</dt><dd>{value}</dd>"
            + "".join(f'<dd class="small">{line}</dd>' for line in more)
            + "</div>"
            for name, value, more in tiles
        )
    )


def nats(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "not measured"


def validation_curve(kl_name: str, history: History) -> str:
    """The figure that the best step was chosen by, over steps."""
    measured = [(step, v.distance) for step, v in history.validations if math.isfinite(v.distance)]
    if not measured:
        return ""
    has_kl = not any(math.isnan(v.kl) for _, v in history.validations)
    name = f"{kl_name}, validation" if has_kl else "masked-token loss, validation"
    notes = [f"step {step:,}: {value:.4f}" for step, value in measured]
    best = next(((p, f"best: {p[1]:.3f}") for p in measured if p[0] == history.best_step), None)
    line = Line("student", name, measured, notes, dots=len(measured) <= 40)
    return figure(capital(name), line_chart(name, [line], "step", mark=best), "nats")


def loss_curves(history: History) -> str:
    """A chart for each part of the loss."""
    charts = []
    for name in dict.fromkeys(name for _, parts in history.losses for name in parts):
        points = [(step, parts[name]) for step, parts in history.losses if math.isfinite(parts.get(name, math.nan))]
        if points:
            title = f"{PART_NAMES.get(name, name)}, training"
            charts.append(figure(title, line_chart(title, [Line("student", name, thin(points))], "step")))
    return "".join(charts)


def thin(points: Sequence[Point]) -> list[Point]:
    """At most MOST_POINTS points, each the mean of equally many that follow each other (the last of what is left)."""
    size = -(-len(points) // MOST_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def frequency(kl_name: str, analysis: Analysis) -> str:
    """KL and accuracy by how often the true token occurs in the corpus."""
    bins = by_frequency(analysis)
    if not bins:
        return ""
    names = [(f"≥ {number(b.low)}" if b.low else "< 10", number(b.targets)) for b in bins]
    spans = [f"{b.low:,} to {b.high:,} times, {b.targets:,} targets: " for b in bins]
    charts = []
    if all(math.isfinite(b.kl) for b in bins):
        notes = [f"{span}{b.kl:.3f}" for span, b in zip(spans, bins, strict=True)]
        bars = Series("student", kl_name, [b.kl for b in bins], notes)
        charts.append(figure(capital(kl_name), bar_chart(kl_name, names, [bars], FREQUENCY), "nats"))
    both = [
        Series(kind, kind, values, [f"{kind}, {span}{value:.1%}" for span, value in zip(spans, values, strict=True)])
        for kind, values in (
            ("student", [b.accuracy for b in bins]),
            ("teacher", [b.teacher_accuracy for b in bins]),
        )
    ]
    chart = bar_chart("accuracy by frequency", names, both, FREQUENCY, percent)
    return "".join([*charts, figure("Accuracy", chart, keys=[(s.kind, s.name) for s in both])])


def calibration_charts(analysis: Analysis) -> str:
    """Reliability diagram of student and teacher, and how their confidence is spread."""
    models = [
        ("student", calibration(analysis.confidence, analysis.correct)),
        ("teacher", calibration(analysis.teacher_confidence, analysis.teacher_correct)),
    ]
    if not models[0][1]:
        return ""
    lines = [Line("ideal", "", [(0.0, 0.0), (1.0, 1.0)])]
    for kind, bins in models:
        notes = [f"{kind}, {b.targets:,} targets: sure {b.confidence:.1%}, right {b.accuracy:.1%}" for b in bins]
        few = [b.targets < FEW for b in bins]
        lines.append(Line(kind, kind, [(b.confidence, b.accuracy) for b in bins], notes, dots=True, hollow=few))
    unit = (0.0, 1.0)
    diagram = line_chart("reliability", lines, "probability of the best token", unit, unit, percent)
    keys = [(kind, f"{kind}, ECE {expected_calibration_error(bins):.3f}") for kind, bins in models]
    return figure(
        "How often it is right", diagram, f"expected calibration error in 10 bins; hollow: below {FEW} targets", keys
    ) + figure("How sure it is", confidence_chart(models), "share of the targets", [(kind, kind) for kind, _ in models])


def confidence_chart(models: Sequence[tuple[str, list[CalibrationBin]]]) -> str:
    """The share of targets in each tenth of confidence."""
    series = []
    for kind, bins in models:
        total = sum(b.targets for b in bins)
        found = {round(10 * b.high): b for b in bins}
        values = [found[n].targets / total if n in found else 0.0 for n in range(1, 11)]
        notes = [f"{kind}, {n - 1}0 to {n}0%: {value:.1%}" for n, value in enumerate(values, 1)]
        series.append(Series(kind, kind, values, notes))
    names = [(f"≤ {n}0" if n == 1 else f"{n}0",) for n in range(1, 11)]
    return bar_chart("spread of confidence", names, series, "probability of the best token, up to … %", percent)


def attention(maps: Sequence[MapPair]) -> str:
    """Pooled maps of teacher and student side by side, on one scale each pair."""
    if not maps:
        return ""
    pairs = []
    for pair in maps:
        most = float(max(pair.teacher.max(), pair.student.max())) ** 0.5
        pictures = "".join(
            f'<div><img alt="attention of the {name}" src="{heat_map(values.clip(0) ** 0.5, most)}">{name}, layer '
            f"{layer + 1}</div>"
            for name, layer, values in (
                ("teacher", pair.teacher_layer, pair.teacher),
                ("student", pair.student_layer, pair.student),
            )
        )
        title = f"Validation row {pair.row + 1}, student layer {pair.student_layer + 1}"
        pairs.append(figure(title, f'<div class="maps">{pictures}</div>', f"KL of the maps {pair.kl:.3f} nats"))
    return f"""<h2>Attention</h2>
<p>Attention averaged over heads and pooled to blocks of the row: from a block (down) to a block (across), the row's
beginning top left. Both maps of a pair are on one scale, its square root, so that weak attention is seen too.</p>
<div class="grid">{"".join(pairs)}</div>"""


def guesses(example: AnnotatedRow, row: int) -> str:
    """A row as the models saw it, and what they made of its targets."""
    numbers = {place.position: n for n, place in enumerate(example.positions, 1)}
    pieces = " ".join(
        f"<mark><bdi>{escape_text(text)}</bdi><sup>{numbers[i]}</sup></mark>"
        if i in numbers
        else f"<bdi>{escape_text(text)}</bdi>"
        for i, text in enumerate(example.pieces)
    )
    lines = "".join(
        f'<tr><td class="n">{n}</td><td><bdi>{escape_text(place.truth)}</bdi></td>'
        f"<td>{guess_list(place.teacher)}</td><td>{guess_list(place.student)}</td></tr>"
        for n, place in enumerate(example.positions, 1)
    )
    shown = len(example.positions)
    which = f"the first {shown} of {example.targets}" if shown < example.targets else f"all {shown}"
    return f"""<section class="card"><h3>Validation row {row}, {which} targets</h3>
<p class="text">{pieces}</p>
<table class="guesses"><thead><tr><th></th><th>true token</th><th>teacher</th><th>student</th></tr></thead>
<tbody>{lines}</tbody></table></section>
"""


def guess_list(found: Sequence[Guess]) -> str:
    return "".join(
        f'<span class="{"right" if guess.correct else "guess"}"><bdi>{escape_text(guess.text)}</bdi> '
        f"<small>{'&lt;1%' if guess.probability < 0.01 else f'{guess.probability:.0%}'}</small></span>"
        for guess in found
    )


def fact(name: str, value: str) -> str:
    return f'<tr><th scope="row">{escape_text(name)}</th><td>{escape_text(value)}</td></tr>'
