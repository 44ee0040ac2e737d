"""comet-cache subset and merge."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from cache_tools.errors import CometError
from cache_tools.parts import SIGNALS, Part
from cache_tools.terminal import one_line_errors, printable

if TYPE_CHECKING:
    from cache_tools.store.ledger import ShardRecord
    from cache_tools.store.reader import Cache

MOST_SHOWN = 5  # shards of one kind in one line


def part_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which part of a cache is meant."""
    options: list[Callable[..., Any]] = [
        click.option(
            "--fraction",
            type=click.FloatRange(0, 1, min_open=True),
            help="This share of the cache's bytes: the first training shards, beside all of validation.",
        ),
        click.option(
            "--max-tokens",
            type=click.IntRange(1),
            help="The first training shards up to so many tokens, padding counted.",
        ),
        click.option(
            "--signals", type=click.Choice(SIGNALS), default="all", help="What to take of the teacher, beside the text."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("destination", metavar="DST", type=click.Path(path_type=Path))
@part_options
@one_line_errors
def subset(source: Path, destination: Path, **options: Any) -> None:
    """Copy a part of the cache SRC into the folder DST: a complete smaller cache.

    All validation shards come along, so that students of the part are measured like those of the whole. Nothing is
    overwritten; run again after a stop, it goes on.
    """
    from cache_tools.parts import part_extent
    from cache_tools.store.copying import cut
    from cache_tools.store.reader import open_cache

    part = Part(**options)
    if part.is_whole:
        raise CometError("subset: which part? Give --fraction, --max-tokens or --signals", exit_code=2)
    cache = open_cache(source)
    extent = part_extent(cache.recipe, cache.seal, cache.extent, records_of(cache), part, source)
    show_result(cut(cache, destination, extent, progress("subset")))


@click.command("merge")
@click.argument("sources", metavar="SRC…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.argument("destination", metavar="DST", type=click.Path(path_type=Path))
@one_line_errors
def merge_caches(sources: tuple[Path, ...], destination: Path) -> None:
    """Join caches SRC… of one recipe, built in different places, in the folder DST.

    Of two versions of one shard the one of the earlier SRC is kept. Nothing is overwritten; run again after a stop, it
    goes on. Caches of different text are not merged: give them to comet-train together.
    """
    from cache_tools.store.copying import merge
    from cache_tools.store.reader import open_cache

    caches = [open_cache(source) for source in sources]
    for cache in caches:
        for line in numerics_lines(cache):
            click.echo(line)
    merged = merge(caches, destination, progress("merge"))
    if several := differing_shards(caches):
        click.echo(f"of {len(several)} shards there are different versions; the first is kept: {first_few(several)}")
    show_result(merged)


def progress(name: str) -> Callable[[Sequence[Any]], "tqdm[Any]"]:
    """A bar over shards, none where nobody watches."""
    return partial(tqdm, desc=name, unit="shard", disable=None)


def records_of(cache: "Cache") -> list["ShardRecord"]:
    """The commit records within the extent, as far as shards are committed. Raises CometError when one is damaged."""
    found = [cache.record(group, shard) for group in cache.specs for shard in cache.extent.indices(group)]
    return [record for record in found if record is not None]


def numerics_lines(cache: "Cache") -> list[str]:
    """On what the shards of a cache were computed, a line for each kind, the most frequent first."""
    kinds = Counter(tuple(sorted(record.numerics.items())) for record in records_of(cache))
    return [
        f"{cache.root}: {count:,} shards of " + printable(", ".join(f"{name} {value}" for name, value in kind))
        for kind, count in kinds.most_common()
    ] or [f"{cache.root}: no shard is built yet"]


def differing_shards(caches: Sequence["Cache"]) -> list[str]:
    """The shards that are in several of the caches, and not the same, each with the first cache that has it."""
    first: dict[tuple[str, int], tuple[ShardRecord, Cache]] = {}
    differing = {}
    for cache in caches:
        for record in records_of(cache):
            kept, of = first.setdefault((record.group, record.shard), (record, cache))
            if kept != record:
                differing[record.group, record.shard] = f"{record.group} {record.shard} of {of.root}"
    return list(differing.values())


def first_few(names: list[str]) -> str:
    more = [f"and {len(names) - MOST_SHOWN} more"] * (len(names) > MOST_SHOWN)
    return ", ".join(names[:MOST_SHOWN] + more)


def show_result(cache: "Cache") -> None:
    """What a command has made, in a line or two."""
    from cache_tools.describe import describe

    facts = describe(cache)
    for name in ("state", "part", "bytes", "cache_id"):
        if name in facts:
            click.echo(f"{cache.root}: {printable(facts[name])}" if name == "state" else shown(name, facts[name]))


def shown(name: str, value: object) -> str:
    return f"  {name.replace('_', ' '):<18} {printable(value)}"
