"""Texts about a training: the lines that `comet-train` prints, and facts for the page and the card."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cache_tools.errors import printable
from cache_tools.store.provenance import teacher_name, teacher_restriction
from cache_tools.store.reader import Cache
from comet.report.analysis import AnnotatedRow, Guess
from comet.settings import Distilled
from comet.student.family import StudentShape
from comet.student.vocabulary import StudentVocabulary
from comet.train.distiller import Distiller
from comet.train.objective import Objective, described, is_used
from comet.train.signals import teacher_targets
from comet.train.validation import Validation

OF_OBJECTIVE = (
    *("kd_weight", "logit_loss", "temperature", "hard_weight", "attention_weight", "attention_loss"),
    *("dropout", "patience"),
)
"""The fields on the page. The others are defaults of options, and the page has the values that were used."""
OF_OPTIONS = (
    *("vocabulary", "init", "epochs", "steps", "batch-size", "learning-rate", "language-alpha", "validate-steps"),
    *("seed", "dtype"),
)
SAMPLE_TARGETS = 4
WORDS_AFTER = 8  # tokens that are shown after the last of these targets


def kl_note(caches: Sequence[Cache], trimmed: bool) -> str:
    """Return a sentence on how the validation KL is measured from these caches."""
    corpus = "the corpus" if len(caches) == 1 else "each target's own corpus"
    targets = teacher_targets(caches[0].recipe)
    if not trimmed:
        return f"The KL is {targets.kl_note}."
    return (
        f"Teacher and student are compared on the tokens of {corpus} only. The KL{targets.trimmed_note} is "
        f"{targets.kl_note}. Accuracies, the teacher's too, count these tokens only."
    )


ATTENTION_NOTES = {
    "cross_entropy": "nats; falls at best to the entropy of the teacher's attention, which the cache lacks, not to 0",
    "mse": "squared difference, plus the scatter of the sample in the cache, so it need not fall to 0",
}


def attention_note(objective: Objective) -> dict[str, str]:
    """Return a note on the attention loss by the name of that part of the loss; empty for losses that need none."""
    note = ATTENTION_NOTES.get(objective.attention_loss)
    return {"attention": note} if note else {}


BY_CACHE = ("cache", "targets", "KL, nats", "accuracy", "teacher's accuracy", "same best token")


def by_cache(caches: Sequence[Cache], result: Distilled) -> list[tuple[str, ...]]:
    """Return the cells under BY_CACHE for each of several caches with validation rows; none for one."""
    measured = [(cache, result.of_each_cache[cache.name]) for cache in caches if cache.name in result.of_each_cache]
    return [
        (
            f"{cache.provenance.get('language_name')} ({Path(cache.name).name})", f"{of_one.targets:,}",
            _nats(of_one.kl), f"{of_one.accuracy:.1%}", f"{of_one.teacher_accuracy:.1%}", f"{of_one.agreement:.1%}",
        )
        for cache, of_one in measured
    ]  # fmt: skip


def measures(before: Validation, after: Validation) -> list[tuple[str, str, str, str]]:
    """Return (name, student before, student after, teacher) of each validation measure."""
    return [
        ("validation KL, nats", _nats(before.kl), _nats(after.kl), "0"),
        ("masked-token loss, nats", _nats(before.cross_entropy), _nats(after.cross_entropy), ""),
        ("masked-token accuracy", f"{before.accuracy:.1%}", f"{after.accuracy:.1%}", f"{after.teacher_accuracy:.1%}"),
        ("same best token as the teacher", f"{before.agreement:.1%}", f"{after.agreement:.1%}", ""),
    ]


def _nats(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "not measured"


def smaller(parameters: int, teacher_parameters: int) -> str:
    """Return by how much a student is smaller than its teacher, in whole percent; nothing is 100% smaller."""
    share = 1 - parameters / teacher_parameters
    return f"{share:.0%} smaller" if share < 0.995 else "more than 99% smaller"


def counted(number: int, noun: str) -> str:
    """Return a number of things: 1 step, 2,000 steps."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Return the lines of a table for the terminal, the first columns to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def cell(column: int, text: str) -> str:
        return text.ljust(widths[column]) if column < left else text.rjust(widths[column])

    return ["  ".join(cell(column, text) for column, text in enumerate(row)).rstrip() for row in rows]


def _steps(objective: Objective, result: Distilled) -> str:
    """Return how many steps a training took, and why if they are fewer than planned."""
    seconds = f"in {result.seconds:.0f} s"
    if result.steps == result.planned_steps:
        return f"{counted(result.steps, 'step')} {seconds}"
    stopped = f"stopped after {result.steps:,} of {result.planned_steps:,} steps {seconds}"
    return f"{stopped}, since {counted(objective.patience, 'validation')} brought no improvement"


def summary(caches: Sequence[Cache], objective: Objective, result: Distilled) -> str:
    """Return the last lines of `comet-train`."""
    lines = aligned([
        ("", "student before", "student after", "teacher"),
        *measures(result.before, result.after),
        ("parameters", "", f"{result.parameters:,}", f"{result.teacher_parameters:,}"),
    ])  # fmt: skip
    if not result.best_step:
        lines.append("No epoch brought the student closer; it is unchanged. Try a lower --learning-rate or more text.")
    return "\n".join(
        [
            f"{_steps(objective, result)}; best checkpoint at step {result.best_step}, "
            f"measured on {counted(result.after.targets, 'validation target')}:",
            *lines,
            kl_note(caches, result.vocabulary.trimmed),
            *predictions_table(result.row_before, result.row_after),
            *(aligned([BY_CACHE, *each]) if (each := by_cache(caches, result)) else ()),
            f"The student is {smaller(result.parameters, result.teacher_parameters)} than its teacher.",
            f"  a page about it:  {result.output}.html",
            f'  load it:          AutoModelForMaskedLM.from_pretrained("{result.output}"), and AutoTokenizer',
            f"  fine-tune it:     comet-eval --model {result.output} --task … --lang … --output …",
            f"  export it:        comet-export {result.output}",
        ]
    )


def announcement(
    caches: Sequence[Cache],
    distiller: Distiller,
    shape: StudentShape,
    vocabulary: StudentVocabulary,
    outside: float | None,
) -> str:
    """Return the first lines of `comet-train`: student, vocabulary, matched layers, objective.

    `outside` is the result of `teacher_mass_outside`.
    """
    objective = distiller.objective
    lines = [f"student: {shape}, for a teacher of {caches[0].recipe.teacher_parameters:,} parameters"]
    if vocabulary.trimmed:
        used = "the corpus uses"
        if len(caches) > 1:
            used = f"the {len(caches)} corpora use, each target over those of its own"
        line = f"vocabulary: {len(vocabulary):,} of the teacher's {vocabulary.teacher_size:,} tokens: all that {used}"
        line += ", and those that spell other text"
        if outside is not None:
            line += f"; {outside:.1%} of the teacher's probability lies on other tokens, which are not learnt"
        lines.append(line)
    if (restriction := teacher_restriction(caches[0].provenance)) is not None:
        lines.append(restriction)
    if distiller.matched:
        pairs = ", ".join(f"{student} ← {teacher}" for teacher, student in distiller.matched)
        lines.append(f"attention matched in layer (student ← teacher): {pairs}")
    elif is_used(objective.attention_weight):
        lines.append("the cache holds no attention: that part of the objective is left out")
    if objective.differs_from_paper:
        lines.append(f"objective {objective.name}, which differs from the paper in this:")
        lines += [f"  - {difference}" for difference in objective.differs_from_paper]
    return "\n".join(lines)


def headline(caches: Sequence[Cache], result: Distilled) -> str:
    """Return the title of the page: what the student is, of which language, teacher and text, or part of it."""
    languages = dict.fromkeys(str(cache.provenance.get("language_name") or "unnamed language") for cache in caches)
    of_texts: dict[str, Any] = {cache.recipe.tokens_sha256: cache.provenance.get("text_tokens") for cache in caches}
    counts = list(of_texts.values())
    is_part = any(len(cache.extent.indices("train")) < cache.recipe.shards("train") for cache in caches)
    part = "a part of " if is_part else ""
    text = "" if None in counts else f" on {part}{counted(sum(counts), 'token')} of text"
    teacher, by = teacher_name(caches[0].provenance), smaller(result.parameters, result.teacher_parameters)
    return f"{result.output.name}: {', '.join(languages)}, distilled from {teacher}{text}, {by}"


def facts(
    caches: Sequence[Cache], objective: Objective, result: Distilled, options: dict[str, Any]
) -> list[tuple[str, str]]:
    """Return names and values: what the student is and how it was made. `options` are those that were used."""
    rows = [
        ("student", str(result.shape)),
        ("begins with", result.begins_with),
        ("vocabulary", vocabulary_line(result.vocabulary)),
        ("teacher", str(caches[0].provenance.get("teacher"))),
        ("objective", objective.name),
        ("steps", f"{result.steps:,} of {result.planned_steps:,}; best checkpoint at step {result.best_step:,}"),
    ]
    rows += [(f"objective: {name.replace('_', ' ')}", described(getattr(objective, name))) for name in OF_OBJECTIVE]
    rows.append(("objective: layers, student ← teacher", _layers(objective)))
    rows += [("objective: differs from the paper", difference) for difference in objective.differs_from_paper]
    rows += [
        (f"option: {name.replace('-', ' ')}", described(options[name]))
        for name in OF_OPTIONS
        if options[name] is not None
    ]
    rows += [(f"option: set {name}", _setting(value)) for name, value in options["set"].items()]
    return rows + [(f"cache {Path(cache.name).name}", cache.cache_id) for cache in caches]


def _setting(value: object) -> str:
    """Return the value of a setting of transformers, as `--set` takes it."""
    return json.dumps(value) if isinstance(value, bool | dict | list | tuple) else described(value)


def _layers(objective: Objective) -> str:
    """Return which layers attention is matched in; −1 is the last."""
    if objective.layer_map is None:
        return "by depth"
    return ", ".join(f"{student} ← {teacher}" for teacher, student in objective.layer_map)


def sample_row(example: AnnotatedRow) -> str:
    """Return the beginning of a row with its first targets numbered, and the teacher's predictions at these, for a look
    at their quality."""
    lines = [f"the first row of the cache: {_numbered(example)}"]
    for number, masked in enumerate(example.positions[:SAMPLE_TARGETS], 1):
        guesses = ", ".join(f"{guess.text.strip('▁')} {_percent(guess)}" for guess in masked.teacher)
        lines.append(printable(f"  [{number}] {masked.label.strip('▁')}; the teacher says {guesses}"))
    return "\n".join(lines)


def _numbered(example: AnnotatedRow) -> str:
    """Return the beginning of a row with its first targets numbered."""
    shown = example.positions[:SAMPLE_TARGETS]
    tokens = example.tokens[: shown[-1].position + WORDS_AFTER if shown else WORDS_AFTER]
    for number, masked in enumerate(shown, 1):
        tokens[masked.position] = f"{'▁' if masked.label.startswith('▁') else ''}[{number}]"
    return printable("".join(tokens).replace("▁", " ").strip())


def predictions_table(before: AnnotatedRow, after: AnnotatedRow) -> list[str]:
    """Return the beginning of a row with its first targets numbered, and a table of the predictions at them."""
    shown = list(zip(before.positions, after.positions, strict=True))[:SAMPLE_TARGETS]
    if not shown:
        return []
    rows = [
        (f"  [{number}]", masked.label.strip("▁"), *map(_best, (masked.teacher, masked.student, later.student)))
        for number, (masked, later) in enumerate(shown, 1)
    ]
    header = ("", "label", "teacher", "student before", "student after")
    return [
        f"a validation row, and the best token at its first targets: {_numbered(before)}",
        *aligned([header, *(tuple(map(printable, cells)) for cells in rows)], left=len(header)),
    ]


def _best(guesses: Sequence[Guess]) -> str:
    return f"{guesses[0].text.strip('▁') or '▁'} {_percent(guesses[0])}" if guesses else "–"


def _percent(guess: Guess) -> str:
    """Return the probability of a guess, as on the page."""
    return "<1%" if guess.probability < 0.01 else f"{guess.probability:.0%}"


def vocabulary_line(vocabulary: StudentVocabulary) -> str:
    """Return which tokens of its teacher a student has."""
    if not vocabulary.trimmed:
        return f"all {len(vocabulary):,} tokens of the teacher"
    corpus, own = ("corpora", "corpus that a text is from") if len(vocabulary.unscored) > 1 else ("corpus", "corpus")
    return (
        f"{len(vocabulary):,} of the teacher's {vocabulary.teacher_size:,} tokens: those of the {corpus}, special "
        f"tokens, and those that spell other text. The student is trained and measured among the tokens of the {own}"
    )
