"""What a person is told of a finished training."""

import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from cache_tools.errors import printable
from cache_tools.store.reader import Cache
from comet.report.analysis import AnnotatedRow
from comet.settings import Distilled
from comet.student.model import StudentShape
from comet.student.vocabulary import StudentVocabulary
from comet.train.distiller import Distiller
from comet.train.objective import Objective, described, is_used

SAMPLE_TARGETS = 4


def kl_name(cache: Cache, trimmed: bool) -> str:
    """A KL over kept tokens is never called the KL, and one among the tokens of the corpus says so."""
    recipe = cache.recipe
    among = ", tokens of the corpus" if trimmed else ""
    if recipe.keep == "topk":
        return f"bucketed KL (k = {recipe.top_k}{among})"
    return f"KL estimate (k = {recipe.top_k} sampled{among})"


def summary(caches: Sequence[Cache], result: Distilled) -> str:
    """The last lines of `comet-train`."""
    before, after = result.before, result.after
    smaller = 1 - result.parameters / result.teacher_parameters
    rows = [
        ("", "student before", "student after", "teacher"),
        (kl_name(caches[0], result.vocabulary.trimmed) + " to the teacher", f"{before.kl:.3f}", f"{after.kl:.3f}", "0"),
        ("masked-token loss, nats", f"{before.cross_entropy:.3f}", f"{after.cross_entropy:.3f}", ""),
        ("masked-token accuracy", f"{before.accuracy:.1%}", f"{after.accuracy:.1%}", f"{after.teacher_accuracy:.1%}"),
        ("same best token as the teacher", f"{before.agreement:.1%}", f"{after.agreement:.1%}", ""),
        ("parameters", "", f"{result.parameters:,}", f"{result.teacher_parameters:,}"),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join([row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)])
             for row in rows]  # fmt: skip
    if not result.best_step:
        lines.append(
            "No epoch brought the student nearer: it is as it began. Try a lower --learning-rate or more text."
        )
    return "\n".join(
        [
            f"{result.steps} steps in {result.seconds:.0f} s, the best student after {result.best_step}; "
            f"measured on {after.targets:,} validation targets:",
            *(line.rstrip() for line in lines),
            f"The student is {smaller:.0%} smaller than its teacher and lies in {result.output}, a page about it in "
            f"{result.output}.html. Load it with",
            f'  AutoModelForMaskedLM.from_pretrained("{result.output}")',
            f'  AutoTokenizer.from_pretrained("{result.output}")',
        ]
    )


def announcement(
    cache: Cache, distiller: Distiller, shape: StudentShape, vocabulary: StudentVocabulary, outside: float | None
) -> str:
    """The first lines of `comet-train`: what is trained, and on what. `outside` as `teacher_mass_outside` gives it."""
    objective = distiller.objective
    lines = [f"student: {shape}, for a teacher of {cache.recipe.teacher_parameters:,} parameters"]
    if vocabulary.trimmed:
        lines.append(
            f"vocabulary: {len(vocabulary):,} of {vocabulary.teacher_size:,} pieces, every one of the corpus among them"
            + (f"; the teacher gives the others {outside:.1%} of its probability" if outside is not None else "")
        )
    if distiller.matched:
        pairs = ", ".join(f"{student} ← {teacher}" for teacher, student in distiller.matched)
        lines.append(f"attention matched in layer (student ← teacher): {pairs}")
    elif is_used(objective.attention_weight):
        lines.append("the cache holds no attention maps: logits only")
    if objective.differs_from_paper:
        lines.append(f"objective {objective.name}, which differs from the paper in this:")
        lines += [f"  - {difference}" for difference in objective.differs_from_paper]
    return "\n".join(lines)


def facts(
    caches: Sequence[Cache], objective: Objective, result: Distilled, options: dict[str, Any]
) -> list[tuple[str, str]]:
    """What a student is and where it comes from, as names and values; `options` as the training was asked for."""
    rows = [
        ("student", str(result.shape)),
        ("vocabulary", vocabulary_line(result.vocabulary)),
        ("teacher", str(caches[0].provenance.get("teacher"))),
        ("objective", objective.name),
        ("steps", f"{result.steps:,}, the best student after {result.best_step:,}"),
    ]
    chosen = {field.name: getattr(objective, field.name) for field in fields(objective)}
    rows += [(f"objective: {name.replace('_', ' ')}", described(value)) for name, value in chosen.items()]
    rows += [
        (f"option: {name.replace('_', ' ')}", described(value))
        for name, value in options.items()
        if not name.startswith(("objective ", "cache "))
    ]
    return rows + [(f"cache {Path(cache.name).name}", cache.cache_id) for cache in caches]


def sample_row(example: AnnotatedRow) -> str:
    """A row as the teacher saw it, and what it thought of the first targets, for a person to judge by eye."""
    text = "".join(example.pieces).replace("▁", " ").strip()
    lines = [f"the first row of the cache: {printable(text)[:200]}{' …' if len(text) > 200 else ''}"]
    for place in example.positions[:SAMPLE_TARGETS]:
        guesses = ", ".join(f"{guess.text.strip('▁')} {guess.probability:.0%}" for guess in place.teacher)
        lines.append(printable(f"  at token {place.position}: {place.truth.strip('▁')}; the teacher says {guesses}"))
    return "\n".join(lines)


def vocabulary_line(vocabulary: StudentVocabulary) -> str:
    if not vocabulary.trimmed:
        return f"all {len(vocabulary):,} pieces of the teacher"
    return (
        f"{len(vocabulary):,} of the teacher's {vocabulary.teacher_size:,} pieces: those of the corpus, single "
        "characters and special tokens. The student was taught, and is measured, among the tokens of the corpus"
    )


def licensed(name: object, licence: object) -> str:
    """A source by its name, with its licence where that is known."""
    return f"{name} ({licence})" if licence else str(name)


def as_markdown(text: object) -> str:
    """One short line in which nothing is markup: what a cache says must not put links or programs into a card."""
    return re.sub(r"([\\`\[\]<>*|!#&])", r"\\\1", printable(text))


def model_card(caches: Sequence[Cache], objective: Objective, result: Distilled) -> str:
    """The README.md of a student folder."""
    languages = [str(cache.provenance.get("language")) for cache in caches]
    sources = [source for cache in caches for source in cache.provenance.get("text", [])]
    texts = sorted({as_markdown(licensed(source.get("name"), source.get("licence"))) for source in sources})
    made_from = caches[0].provenance
    name = printable(made_from.get("teacher")).replace("`", "'")
    teacher = licensed(f"`{name}`", as_markdown(made_from.get("teacher_licence") or ""))
    after = result.after
    identities = "\n".join(f"  - `{cache.cache_id}` ({Path(cache.name).name})" for cache in caches)
    return f"""---
library_name: transformers
pipeline_tag: fill-mask
language: [{", ".join(languages)}]
---
# A distilled masked language model

{result.shape}, {result.parameters:,} parameters, distilled from {teacher}
({result.teacher_parameters:,} parameters) through an offline teacher cache.

- Vocabulary: {vocabulary_line(result.vocabulary)}.
- Text: {", ".join(texts)}. The licence of a model depends on the licences of its teacher and text: check both.
- Caches:
{identities}
- Objective `{objective.name}`: logits {described(objective.kd_weight)} ({objective.logit_loss}) at temperature
  {described(objective.temperature)}, true tokens {described(objective.hard_weight)}, attention
  {described(objective.attention_weight)} ({objective.attention_loss}); {result.steps} steps.

On {after.targets:,} masked tokens of validation text:

| | before | after | teacher |
|---|---|---|---|
| {kl_name(caches[0], result.vocabulary.trimmed)} | {result.before.kl:.3f} | {after.kl:.3f} | 0 |
| masked-token loss (nats) | {result.before.cross_entropy:.3f} | {after.cross_entropy:.3f} | |
| masked-token accuracy | {result.before.accuracy:.1%} | {after.accuracy:.1%} | {after.teacher_accuracy:.1%} |

```python
from transformers import AutoModelForMaskedLM, AutoTokenizer

model = AutoModelForMaskedLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```

`comet-eval --model FOLDER --task … --output MODEL` fine-tunes it; `comet-export` makes an ONNX file of it or of MODEL.
"""
