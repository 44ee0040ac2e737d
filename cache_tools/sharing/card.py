"""The card of a shared cache, a README.md on its content, licences and use; and consent to share under these."""

from collections.abc import Collection, Mapping
from typing import Any

from tqdm import tqdm

from cache_tools.errors import CometError, printable
from cache_tools.sharing.parts import NOT_ANONYMOUS
from cache_tools.signals import kept_signals
from cache_tools.store.ledger import Extent, ShardKey
from cache_tools.store.provenance import attach_command, name_exclusion, restricts_use, texts_read
from cache_tools.store.reader import Cache
from cache_tools.store.recipe import GROUPS, Recipe, describe_views
from cache_tools.store.start import describe_start
from cache_tools.templates import render
from cache_tools.text.hub import UNKNOWN_LICENCE

MARK = "<!-- written by comet-cache push -->"
MAX_CARD_BYTES = 2**20


def text_licences(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return the name and licence of every text in a cache of this provenance."""
    return {
        printable(source.get("name", "a text without a name")): printable(source.get("licence") or UNKNOWN_LICENCE)
        for source in texts_read(provenance)
    } or {"a text without a name": UNKNOWN_LICENCE}


def start_licences(provenance: Mapping[str, Any], has_start: bool) -> dict[str, str]:
    """Return the name and licence of the teacher's layers in a cache, nothing for a cache without a start."""
    name = f"layers of {printable(provenance.get('teacher') or 'a teacher without a name')}"
    return {name: printable(provenance.get("teacher_licence") or UNKNOWN_LICENCE)} if has_start else {}


def in_doubt(licences: dict[str, str]) -> list[str]:
    """Return the entries, name and licence, whose licence is unknown or restricts use."""
    return [
        f"{name} ({licence})"
        for name, licence in licences.items()
        if licence.startswith(UNKNOWN_LICENCE) or restricts_use(licence)
    ]


def print_licences(provenance: Mapping[str, Any], has_start: bool, has_text: bool = True) -> None:
    """Print the texts and their licences, and whether they are copied; before them the teacher's, if its layers are."""
    for name, licence in start_licences(provenance, has_start).items():
        tqdm.write(f"a cache holds {name}, under its licence ({licence})")
    named = ", ".join(f"{name} ({licence})" for name, licence in text_licences(provenance).items())
    if has_text:
        tqdm.write(f"a cache holds its text word for word; this one holds that of {named}")
    else:
        tqdm.write(f"no text is copied; that of {named} stays here. {NOT_ANONYMOUS}")


def require_consent(
    provenance: Mapping[str, Any], where: str, may_share: bool, has_start: bool, has_text: bool, detachable: bool
) -> None:
    """Raise CometError if the licence of the text or of the teacher's layers is in doubt, as far as a copy has them,
    and `may_share` is not set; if the text is `detachable`, the message says how."""
    texts = in_doubt(text_licences(provenance)) if has_text else []
    layers = in_doubt(start_licences(provenance, has_start))
    doubtful = texts + layers
    if may_share or not doubtful:
        return
    if len(doubtful) == 1:
        problem = f"the licence of {doubtful[0]} is unknown or restricts its use; if you may share it"
    else:
        problem = f"the licences of {' and '.join(doubtful)} are unknown or restrict use; if you may share them"
    ways = []
    if texts and detachable:
        ways.append("leave the text out with --detach-text")
    if layers:
        ways.append("build the cache with --start-layers none")
    otherwise = f"; if not, {', and '.join(ways)}" if ways else ""
    raise CometError(f"{where}: {problem}, say so with --i-may-share-this{otherwise}", exit_code=2)


def card(
    cache: Cache, extent: Extent, size: int, cache_id: str | None, attached_id: str | None = None,
    missing: Collection[ShardKey] = (),
) -> str:  # fmt: skip
    """Return the card of a copy of this extent, `size` bytes in all; `attached_id` is its id when its text is attached.
    Shards of the extent that are `missing` were not built yet.

    It names no location, machine or person.
    """
    from huggingface_hub import DatasetCardData

    recipe, provenance = cache.recipe, cache.provenance
    code = str(provenance.get("language", "und"))
    held = {group: len(extent.indices(group)) - sum(key.group == group for key in missing) for group in GROUPS}
    return render(
        "cache_tools.sharing", "card.md.jinja", mark=MARK, code=code, recipe=recipe, provenance=provenance, size=size,
        metadata=DatasetCardData(language=code, license="other", tags=["comet-cache", "knowledge-distillation"]),
        shards=", ".join(f"{held[g]:,} of {recipe.shards(g):,} {g}" for g in GROUPS) + (" so far" if missing else ""),
        signals=_held_signals(recipe, extent),
        cache_id=cache_id, attached_id=attached_id, has_text=extent.has_text, not_anonymous=NOT_ANONYMOUS,
        attach=printable(attach_command(f"{code}.zarr", provenance)), licences=text_licences(provenance),
        teacher_licence=provenance.get("teacher_licence") or UNKNOWN_LICENCE,
        start=describe_start(recipe), views=describe_views(recipe), left_out=name_exclusion(provenance),
    )  # fmt: skip


def _held_signals(recipe: Recipe, extent: Extent) -> list[tuple[str, str]]:
    """Return (description, fidelity to the teacher) of each signal in the extent."""
    temperatures = ", ".join(f"{t:g}" for t in recipe.temperatures)
    return [
        (f"{s.family} ({s.kept(recipe)}{f'; T = {temperatures}' if s.family == 'logits' else ''})", s.fidelity)
        for s in kept_signals(recipe)
        if s.arrays.keys() & set(extent.arrays)
    ]
