"""The card of a student: the README.md in its folder."""

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCardData

from cache_tools.store.provenance import name_exclusion, teacher_name, teacher_restriction
from cache_tools.store.reader import Cache
from cache_tools.templates import render
from cache_tools.text.hub import GATED
from comet.report.examples import example_comment
from comet.report.summary import BY_CACHE, by_cache, kl_note, measures, vocabulary_line
from comet.settings import Distilled
from comet.train.objective import Objective, described

IDENTIFIER, OTHER = re.compile(r"[a-z0-9.-]+"), "other"  # licences as the hub names them


def _languages(caches: Sequence[Cache]) -> list[str]:
    return [str(cache.provenance.get("language")) for cache in caches]


def _licensed(name: object, licence: object) -> str:
    """Return the name of a source, with its licence where that is known."""
    return f"{name} ({licence})" if licence else str(name)


def card_metadata(caches: Sequence[Cache], has_layers: bool) -> ModelCardData:
    """Return the metadata of a student, by which the hub finds it. `has_layers` of its teacher put it under the
    teacher's licence."""
    provenance = caches[0].provenance
    teacher, licence = str(provenance.get("teacher")), str(provenance.get("teacher_licence")).removesuffix(GATED)
    is_on_hub = provenance.get("teacher_revision") is not None and teacher.count("/") == 1
    return ModelCardData(
        language=_languages(caches),
        license=licence if has_layers and licence != OTHER and IDENTIFIER.fullmatch(licence) else None,
        base_model=teacher if is_on_hub else None,
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=["distillation", "comet-distill"],
    )


def model_card(caches: Sequence[Cache], objective: Objective, result: Distilled, has_layers: bool) -> str:
    """Return the README.md of a student folder. `has_layers`: the student began with layers of its teacher."""
    provenance = caches[0].provenance
    sources = [source for cache in caches for source in cache.provenance.get("text", [])]
    return render(
        "comet.report", "student.md.jinja", result=result, objective=objective, described=described,
        metadata=card_metadata(caches, has_layers), comment=example_comment(_languages(caches)),
        restriction=teacher_restriction(provenance),
        teacher=_licensed(teacher_name(provenance), provenance.get("teacher_licence")),
        texts=sorted({_licensed(source.get("name"), source.get("licence")) for source in sources}),
        left_out=sorted({name_exclusion(cache.provenance) for cache in caches}),
        caches=[(Path(cache.name).name, cache.cache_id) for cache in caches],
        vocabulary=vocabulary_line(result.vocabulary), measures=measures(result.before, result.after),
        seq_len=caches[0].recipe.seq_len, kl_note=kl_note(caches, result.vocabulary.trimmed),
        header=BY_CACHE, by_cache=by_cache(caches, result),
    )  # fmt: skip
