"""The card of a shared cache: a README.md that says what it is, whose text is in it and how it is used."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from tqdm import tqdm

from cache_tools.errors import CometError, printable
from cache_tools.sharing.parts import ATTENTION, NOT_ANONYMOUS
from cache_tools.store.layout import TOKEN_ARRAYS
from cache_tools.store.ledger import Extent
from cache_tools.store.provenance import attach_call
from cache_tools.store.reader import Cache
from cache_tools.store.recipe import GROUPS, Recipe
from cache_tools.text.hub import UNKNOWN_LICENCE

CARD = "README.md"
MARK = "<!-- written by comet-cache push -->"
MAX_CARD_BYTES = 2**20
NOT_FREE = re.compile(r"\b(nc|non-?commercial|research|other|proprietary)\b")


def text_licences(made_from: Mapping[str, Any]) -> dict[str, str]:
    """Every text that a cache of this provenance holds word for word, with its licence as far as it is known."""
    return {
        printable(source.get("name", "a text without a name")): printable(source.get("licence") or UNKNOWN_LICENCE)
        for source in made_from.get("text", [])
    } or {"a text without a name": UNKNOWN_LICENCE}


def in_doubt(licences: dict[str, str]) -> list[str]:
    """The texts whose licence is unknown, or does not allow every use."""
    return [
        f"{name} ({licence})"
        for name, licence in licences.items()
        if licence == UNKNOWN_LICENCE or NOT_FREE.search(licence.lower())
    ]


def say_whose(made_from: Mapping[str, Any], has_text: bool = True) -> None:
    """A line that names the texts and their licences, and says whether they are moved."""
    named = ", ".join(f"{name} ({licence})" for name, licence in text_licences(made_from).items())
    if has_text:
        tqdm.write(f"a cache holds its text word for word; this one that of {named}")
    else:
        tqdm.write(f"no text is moved, not that of {named}. {NOT_ANONYMOUS}")


def require_consent(made_from: Mapping[str, Any], where: str, may_share: bool, way_out: str = "") -> None:
    """Raises CometError where a licence is in doubt and nobody has said that the text may be shared. `way_out` is what
    else can be done."""
    if (doubts := in_doubt(text_licences(made_from))) and not may_share:
        raise CometError(
            f"{where}: the licence of {', '.join(doubts)} is unknown or restricts its use; if you may share the text, "
            f"say so with --i-may-share-this{way_out}",
            exit_code=2,
        )


def card(cache: Cache, extent: Extent, size: int, cache_id: str | None, attached_id: str | None = None) -> str:
    """The card of a copy of this extent, `size` bytes in all; `attached_id` is its id when its text is attached.

    It names no location, machine or person.
    """
    recipe, made_from = cache.recipe, cache.provenance
    code = str(made_from.get("language", "und"))  # a few letters, so it may stand in YAML and in commands
    language = printable(made_from.get("language_name") or "an unnamed language")
    licences = text_licences(made_from)
    teacher = printable(made_from.get("teacher"))
    tokens = made_from.get("text_tokens")
    shards = ", ".join(f"{len(extent.indices(g)):,} of {recipe.shards(g):,} {g}" for g in GROUPS)
    best = "best tokens" if recipe.keep == "topk" else "tokens at most, by threshold sampling"
    signals = []
    if any(name not in (*TOKEN_ARRAYS, ATTENTION) for name in extent.arrays):
        signals.append(f"logits ({recipe.top_k} {best}; T = " + ", ".join(f"{t:g}" for t in recipe.temperatures) + ")")
    if ATTENTION in extent.arrays:
        signals.append(
            f"attention maps of layers {', '.join(map(str, recipe.attention_layers))}, {recipe.attention_size} blocks "
            f"a side, of one row in {recipe.attention_every}"
        )
    rows = {
        "language": f"{language} ({code})",
        "teacher": f"{teacher}: {recipe.teacher_architecture}, {recipe.teacher_parameters:,} parameters"
        f" ({printable(made_from.get('teacher_licence') or UNKNOWN_LICENCE)})",
        "tokens": f"{tokens:,}, {recipe.views} masked view{'s' * (recipe.views > 1)}"
        if isinstance(tokens, int)
        else "",
        "rows": f"{recipe.train_rows:,} train, {recipe.validation_rows:,} validation, of {recipe.seq_len} tokens",
        "signals": "; ".join(signals),
        "shards": shards,
        "size": f"{size / 1e6:,.1f} MB",
        "recipe id": f"`{recipe.recipe_id}`",
        "cache id": f"`{cache_id}`" if cache_id else "none yet: it is not complete",
        "cache id with its text": f"`{attached_id}`" if attached_id else "",
    }
    file = f"{code}.zarr"
    whose = "The cache holds its text word for word. It may be used and passed on as far as the text may."
    attaching = []
    if not extent.has_text:
        whose = f"The cache was made from this text, and does not hold it: who has it puts it back. {NOT_ANONYMOUS}"
        attaching = [printable(attach_call(file, made_from))]
    return "\n".join((
        "---",
        f"language: {code}",
        "license: other",
        "tags: [comet-cache, knowledge-distillation]",
        "---",
        MARK,
        "",
        f"# A teacher's cache for {language}",
        "",
        "What a large masked language model says about a text, so that small students can be trained without it.",
        "",
        *table(("", ""), rows.items()),
        "",
        "## How true it is",
        "",
        fidelity(recipe, extent),
        "",
        "## Whose text this is",
        "",
        whose,
        "",
        *table(("text", "licence"), licences.items()),
        "",
        "## Use",
        "",
        "```sh",
        f"comet-cache pull URL-OF-THIS-FOLDER {file}" + (f" --id {cache_id}" if cache_id else ""),
        *attaching,
        f"comet-cache verify {file} --deep",
        f"comet-train --cache {file}",
        "```",
        "",
    ))  # fmt: skip


def fidelity(recipe: Recipe, extent: Extent) -> str:
    """In what way the cache falls short of the teacher, and how anyone measures it."""
    said = []
    if {"sample_id", "topk_id"} & set(extent.arrays):
        said.append(
            "Logits: a sample whose expectation is the teacher's whole distribution; its likely tokens are exact."
            if recipe.keep == "threshold"
            else "Logits: the best tokens exactly, and the mass of all others as one number, which is a bias."
        )
    if ATTENTION in extent.arrays:
        said.append("Attention: averaged over heads, pooled in blocks of positions, its square root rounded to 8 bits.")
    said.append(
        "Who has the teacher runs it again on some rows, and sees how far values, KL and maps are off: "
        "`comet-cache verify CACHE --teacher TEACHER --rows 256`."
    )
    return " ".join(said)


def table(heads: tuple[str, str], rows: Iterable[tuple[str, Any]]) -> list[str]:
    """A Markdown table of the rows that say something."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows if row[1]]
    return [f"| {heads[0]} | {heads[1]} |", "|---|---|", *(f"| {name} | {value} |" for name, value in cells)]
