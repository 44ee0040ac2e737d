"""The main facts about a cache, and the options that build it again; apart from the commands, which start at once."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_tools.places.foreign import is_left_by_system
from cache_tools.signals import LOGITS, SIGNALS, kept_signals
from cache_tools.store.ledger import ShardKey, ShardRecord, cache_id, whole_extent
from cache_tools.store.provenance import attach_command, describe_exclusion
from cache_tools.store.reader import Cache
from cache_tools.store.recipe import GROUPS, describe_views
from cache_tools.store.staging import STAGING
from cache_tools.store.start import describe_start, start_chunks
from cache_tools.text.hub_text import parse_hub_text

if TYPE_CHECKING:
    from cache_tools.sharing.listing import Listing

WITHOUT_START = ", without the start"


def describe(cache: Cache) -> dict[str, object]:
    """Return facts by name, each a number or a text: state, source, teacher, sizes. Raises CometError on damage."""
    return _facts(cache, cache.records(), _bytes_of(cache.root), cache.root)


def describe_listing(listing: "Listing") -> dict[str, object]:
    """Return the same facts about a cache elsewhere. Its bytes are those of the files in its ledger."""
    from cache_tools.sharing.parts import bytes_of

    cache, records = listing.cache, listing.records
    copy = f"{cache.provenance.get('language', 'und')}.zarr"
    return _facts(cache, records, bytes_of(cache.seal, cache.extent, records.values()), copy)


def _facts(cache: Cache, records: Mapping[ShardKey, ShardRecord], size: int, folder: str | Path) -> dict[str, object]:
    """Return the facts, given the commit records and the size in bytes. A text is to be attached in `folder`."""
    recipe, provenance = cache.recipe, cache.provenance
    shards = len(cache.extent.keys())
    missing = shards - len(records)
    start_bytes = sum(cache.seal.files[path].size for path in start_chunks(recipe))
    targets = recipe.max_targets * (recipe.train_rows + recipe.validation_rows)
    kept = LOGITS[recipe.keep].kept(recipe)
    text_tokens = provenance.get("text_tokens")
    is_whole = cache.extent == whole_extent(recipe)
    excluded = _listed(provenance.get("excluded", []), "name")
    facts: dict[str, object] = {
        "state": "complete" if not missing else f"{shards - missing} of {shards} shards built",
        **({} if is_whole else {"part": _part_of_whole(cache)}),
        **({} if cache.extent.has_text else {"text_detached": attach_command(folder, provenance)}),
        "language": f"{provenance.get('language_name')} ({provenance.get('language')})",
        "text": _texts(provenance.get("text", [])),
        **_from_hub("text", provenance.get("text", [])),
        "text_tokens": text_tokens,
        **_unknown(provenance),
        **({"excluded": excluded} if excluded else {}),
        "left_out": describe_exclusion(provenance),
        "teacher": f"{provenance.get('teacher')}: {recipe.teacher_architecture}, {recipe.teacher_layers} layers × "
        f"{recipe.teacher_hidden}, {recipe.teacher_parameters:,} parameters, computed in {cache.settings.get('dtype')}",
        **_from_hub("teacher", [{name: provenance.get(f"teacher_{name}") for name in ("revision", "licence")}]),
        **_computed(records),
        "teacher_sha256": recipe.teacher_sha256,
        "vocabulary": f"{recipe.vocab_size:,} tokens, {recipe.seen_size:,} of them in its rows",
        "rows": f"{recipe.train_rows:,} train + {recipe.validation_rows:,} validation, of {recipe.seq_len} tokens, "
        + describe_views(recipe),
        "targets": f"up to {targets:,}; of each {kept}, at T = " + ", ".join(f"{t:g}" for t in recipe.temperatures),
        **{s.name: s.kept(recipe) if s in kept_signals(recipe) else "none" for s in SIGNALS if s.name not in LOGITS},
        "start": describe_start(recipe),
        **({"start_bytes": start_bytes} if start_bytes else {}),
        "bytes": size,
    }
    if text_tokens and not missing and is_whole:
        each = (size - start_bytes) / (text_tokens * recipe.views)
        views = ", of each view" if recipe.views > 1 else ""
        facts["bytes_per_token"] = f"{each:,.1f}{views}{WITHOUT_START if start_bytes else ''}"
    facts["recipe_id"] = recipe.recipe_id
    if not missing:
        facts["cache_id"] = cache_id(recipe, cache.seal, cache.extent, records)
    return facts


def numerics_of(records: Iterable[ShardRecord]) -> list[str]:
    """Return how many shards were computed how, by device, dtype, versions and all that their last bits depend on, the
    most frequent first."""
    kinds = Counter(tuple(sorted(record.numerics.items())) for record in records)
    return [
        f"{count:,} shard{'s' if count > 1 else ''} with {', '.join(f'{name} {value}' for name, value in kind)}"
        for kind, count in kinds.most_common()
    ]


def _computed(records: Mapping[ShardKey, ShardRecord]) -> dict[str, object]:
    """Return how the shards were computed, or most of them."""
    ways = numerics_of(records.values())
    if not ways:
        return {}
    return {"computed": ways[0] + ("; the others differently" if len(ways) > 1 else "")}


def _unknown(provenance: dict[str, Any]) -> dict[str, object]:
    """Return how many tokens of the text are unknown to the tokenizer, if the cache says so."""
    unknown, total = provenance.get("unknown_tokens"), provenance.get("text_tokens")
    return {"unknown_tokens": f"{unknown:,} ({unknown / total:.2%})"} if total and unknown is not None else {}


def _bytes_of(root: Path) -> int:
    """Return the bytes of a cache's files, without those that a build or a copy still writes, and a system's own."""
    size = 0
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if not name.startswith(STAGING) and not is_left_by_system(name)]
        for name in (file for file in files if not is_left_by_system(file)):
            with suppress(FileNotFoundError):  # it was removed a moment ago
                size += (Path(folder) / name).stat().st_size
    return size


def _part_of_whole(cache: Cache) -> str:
    """Return how many of the shards a smaller copy holds, and which arrays it lacks."""
    held = {group: len(cache.extent.indices(group)) for group in GROUPS}
    shards = " and ".join(f"{held[group]:,} of {cache.recipe.shards(group):,} {group}" for group in GROUPS)
    without = [name for name in cache.specs["train"] if name not in cache.extent.arrays]
    return f"{shards} shards" + (f", without {', '.join(without)}" if without else "")


def _texts(records: list[dict[str, Any]]) -> str:
    """Return the names of the texts; of several with the tokens that are of each, if the cache says so."""
    texts = []
    for record in records:
        if record.get("name"):
            counted = len(records) > 1 and record.get("tokens") is not None
            texts.append(f"{record['name']} ({record['tokens']:,} tokens)" if counted else str(record["name"]))
    return ", ".join(texts)


def _listed(records: list[dict[str, Any]], field: str) -> str:
    return ", ".join(str(record[field]) for record in records if record.get(field))


def _from_hub(name: str, records: list[dict[str, Any]]) -> dict[str, object]:
    """Return the commits and licences of sources from the hub, as far as known."""
    facts = {f"{name}_{field}": _listed(records, field) for field in ("revision", "licence")}
    return {field: value for field, value in facts.items() if value}


def options_of_build(cache: Cache) -> dict[str, object]:
    """Return the options of `comet-cache build` that give this cache again, with every automatic choice.

    Sources from the hub have their commit, files and folders only their name.
    """
    recipe, provenance = cache.recipe, cache.provenance
    return {
        "lang": provenance.get("language"),
        "teacher": _at_revision(str(provenance.get("teacher")), provenance.get("teacher_revision")),
        "text": [_text_option(source) for source in provenance.get("text", [])],
        "max-tokens": provenance.get("max_tokens"),
        "exclude": [str(source.get("name")) for source in provenance.get("excluded", [])] or None,
        "seq-len": recipe.seq_len,
        "views": recipe.views,
        "continue-views": recipe.continued_views,
        "mask-prob": recipe.mask_prob,
        "seed": recipe.seed,
        "keep": recipe.keep,
        "top-k": recipe.top_k,
        "temperatures": recipe.temperatures,
        "attention-layers": recipe.attention_layers or "none",
        "attention-queries": recipe.attention_queries,
        "attention-keys": recipe.attention_keys,
        "start-layers": recipe.start_layers or "none",
        "start-width": recipe.start_width or None,
        "rows-per-shard": recipe.rows_per_shard,
        "dtype": cache.settings.get("dtype"),
        "batch-size": cache.settings.get("batch_size"),
    }


def local_sources(cache: Cache) -> list[str]:
    """Return the names of teacher, texts and evaluation files that were on the machine of the build."""
    provenance = cache.provenance
    teacher = {"name": provenance.get("teacher"), "revision": provenance.get("teacher_revision")}
    sources = [teacher, *provenance.get("text", []), *provenance.get("excluded", [])]
    return [str(source["name"]) for source in sources if source.get("name") and not source.get("revision")]


def _text_option(source: dict[str, Any]) -> str:
    name, revision = str(source.get("name")), source.get("revision")
    return replace(parse_hub_text(name), revision=revision).at_revision if revision else name


def _at_revision(name: str, revision: object) -> str:
    return f"{name}@{revision}" if revision else name
