"""comet-cache subset and merge, and what other commands on folders and parts of caches share with them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from cache_tools.cli.help import GroupedHelp
from cache_tools.cli.terminal import WrongCall, fact_line, one_line_errors
from cache_tools.errors import CometError, printable
from cache_tools.places.urls import is_url
from cache_tools.settings import PART_SIGNALS, Part

if TYPE_CHECKING:
    from cache_tools.store.ledger import Extent, ShardKey, ShardRecord
    from cache_tools.store.reader import Cache

PART = ("fraction", "max_tokens", "signals", "detach_text")
LARGER = 1.1  # times the fraction asked for, from where on a larger part is reported
MOST_SHOWN = 5  # shards in one line


class CacheFolder(click.Path):
    """The path of a cache's folder. A URL, of which a path would be another text, is refused with a way out."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            elsewhere = is_url(str(value))
        except CometError as error:
            raise WrongCall(str(error)) from None
        if elsewhere:
            raise WrongCall(f"{value}: expected a folder; to copy a cache from a URL into one, use comet-cache pull")
        return super().convert(value, param, ctx)


detach_option = click.option(
    "--detach-text",
    is_flag=True,
    help="Leave the text out; anyone who has it can re-attach it with comet-cache attach.",
)


def part_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that select a part of a cache."""
    fraction = "This share of the cache's bytes: the first training shards, and all of validation."
    max_tokens = "The first training shards up to this many tokens, padding included."
    signals = "The teacher's signals to copy with the text."
    command = click.option("--signals", type=click.Choice(PART_SIGNALS), default="all", help=signals)(
        detach_option(command)
    )
    command = click.option("--max-tokens", type=int, help=max_tokens)(command)
    return click.option("--fraction", type=float, help=fraction)(command)


@click.command(
    cls=GroupedHelp,
    sections={"Which part": PART},
    examples=(
        "comet-cache subset kin.zarr part.zarr --fraction 0.1",
        "comet-cache subset kin.zarr without-text.zarr --detach-text",
    ),
)
@click.argument("source", metavar="SRC", type=CacheFolder())
@click.argument("destination", metavar="DST", type=CacheFolder())
@part_options
@one_line_errors
def subset(source: Path, destination: Path, **options: Any) -> None:
    """Copy a part of the cache SRC into the folder DST: a complete smaller cache, or one without its text.

    All validation shards are included, so that students of the part and of the whole are measured on the same rows.
    Nothing is overwritten; run again after a stop to continue.
    """
    from cache_tools.sharing.parts import detach, part_extent
    from cache_tools.store.copy import cut
    from cache_tools.store.reader import open_cache

    part = Part(**options)
    if part == Part():
        raise CometError(
            "subset: no part chosen; give --fraction, --max-tokens, --signals or --detach-text", exit_code=2
        )
    cache = open_cache(source)
    records = list(cache.records().values())
    extent = part_extent(cache.recipe, cache.seal, detach(cache, part), records, part, source)
    report_larger_part(part, cache, extent, records)
    show_result(cut(cache, destination, extent, _progress("subset")))


@click.command("merge", cls=GroupedHelp)
@click.argument("sources", metavar="SRC…", nargs=-1, required=True, type=CacheFolder())
@click.argument("destination", metavar="DST", type=CacheFolder())
@one_line_errors
def merge_caches(sources: tuple[Path, ...], destination: Path) -> None:
    """Join caches SRC… of one recipe, built on different machines, in the folder DST.

    If versions of a shard differ, that of the first SRC is kept. Nothing is overwritten; run again after a stop to
    continue. Caches of different texts cannot be merged: give them to comet-train together.
    """
    from cache_tools.store.copy import merge
    from cache_tools.store.reader import open_cache

    caches = [open_cache(source) for source in sources]
    for cache in caches:
        for line in _numerics_lines(cache):
            click.echo(line)
    merged = merge(caches, destination, _progress("merge"))
    if differing := _differing_shards(caches):
        more = f", and {len(differing) - MOST_SHOWN} more" if len(differing) > MOST_SHOWN else ""
        kept = ", ".join(differing[:MOST_SHOWN]) + more
        click.echo(f"{len(differing)} shards have different versions; the first is kept: {kept}")
    show_result(merged)


def _progress(name: str) -> Callable[[Sequence[Any]], "tqdm[Any]"]:
    """Return what shows the progress over shards."""
    from cache_tools.progress import show_progress

    return partial(show_progress, what=name, unit="shard")


def report_larger_part(part: Part, cache: "Cache", extent: "Extent", records: list["ShardRecord"]) -> None:
    """Write a line if the smallest possible part is clearly larger than the fraction asked for."""
    from cache_tools.sharing.parts import bytes_of

    if part.fraction is None or len(extent.indices("train")) > 1:
        return
    whole = replace(cache.extent, arrays=extent.arrays)
    share = bytes_of(cache.seal, extent, records) / bytes_of(cache.seal, whole, records)
    if share > part.fraction * LARGER:
        click.echo(
            f"{share:.0%} of the bytes instead of {part.fraction:.0%}: vocabulary, start, validation and one training "
            "shard are always included"
        )


def _numerics_lines(cache: "Cache") -> list[str]:
    """Return a line for each device and dtype that shards were computed with, the most frequent first."""
    from cache_tools.cli.facts import numerics_of

    ways = numerics_of(cache.records().values())
    return [f"{cache.root}: {printable(way)}" for way in ways or ["no shard is built yet"]]


def _differing_shards(caches: Sequence["Cache"]) -> list[str]:
    """Return the shards of which the caches hold different versions, each with the first cache that holds it."""
    first: dict[ShardKey, tuple[ShardRecord, Cache]] = {}
    differing = {}
    for cache in caches:
        for key, record in cache.records().items():
            kept, holder = first.setdefault(key, (record, cache))
            if kept != record:
                differing[key] = f"{key} of {holder.root}"
    return list(differing.values())


def show_result(cache: "Cache") -> None:
    """Write state, part, size and id of a new cache."""
    from cache_tools.cli.facts import describe

    facts = describe(cache)
    click.echo(f"{cache.root}: {printable(facts['state'])}")
    for name in ("part", "text_detached", "bytes", "cache_id"):
        if name in facts:
            click.echo(fact_line(name, facts[name]))
