"""comet-cache push, pull, subset and merge."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from cache_tools.cli.help import GroupedHelp
from cache_tools.cli.terminal import one_line_errors
from cache_tools.errors import CometError, printable
from cache_tools.settings import PART_SIGNALS, Part

if TYPE_CHECKING:
    from cache_tools.sharing.plan import Plan
    from cache_tools.store.ledger import Extent, ShardRecord
    from cache_tools.store.reader import Cache

PART = ("fraction", "max_tokens", "signals", "detach_text")
LARGER = 1.1  # a part than what was asked for, from where on it is said
MOST_SHOWN = 5  # shards of one kind in one line


detach_option = click.option(
    "--detach-text",
    is_flag=True,
    help="Leave the text out: who has it as well puts it back with comet-cache attach.",
)


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
            "--signals",
            type=click.Choice(PART_SIGNALS),
            default="all",
            help="Teacher signals to take, beside the text.",
        ),
        detach_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command(
    cls=GroupedHelp,
    sections={"Which part": PART, "Which cache": ("pin",)},
    examples=(
        "comet-cache pull https://lab.example.org/kin.zarr kin.zarr",
        "comet-cache pull shared/kin.zarr kin.zarr --fraction 0.1 --detach-text     a tenth, for who has the text",
    ),
)
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@part_options
@click.option("--id", "pin", metavar="CACHE_ID", help="The cache at SRC, or this part of it, must be this one.")
@one_line_errors
def pull(source: str, destination: str, pin: str | None, **options: Any) -> None:
    """Copy the cache at SRC, whole or in part, into the folder DST.

    SRC is a folder or a URL: ssh://HOST/DIR, https://…, s3://BUCKET/DIR, hf://datasets/NAME, whatever else fsspec
    knows. Every file is compared with the ledger before it gets its name. Run again it moves only what is missing:
    after a stop, when more has been built, or for a larger part.
    """
    from cache_tools.sharing.listing import read_listing
    from cache_tools.sharing.locations.folder import Folder
    from cache_tools.sharing.locations.location import locate
    from cache_tools.sharing.locations.remote import RetryPolicy
    from cache_tools.sharing.plan import plan
    from cache_tools.sharing.transfer import carry_out
    from cache_tools.store.reader import open_cache

    policy = RetryPolicy()
    to = locate(destination, policy)
    if not isinstance(to, Folder):
        raise CometError(f"{to.name}: pull copies into a folder; to another location, push from there", exit_code=2)
    part = Part(**options)
    planned = plan(read_listing(locate(source, policy), policy), to, part, policy, pin)
    say_share(part, planned.source.cache, planned.extent, list(planned.source.records.values()))
    with to.staging():
        carry_out(planned, "pull", policy)
    require_all(planned)
    show_result(open_cache(to.root))


@click.command(
    cls=GroupedHelp,
    sections={"The text": ("i_may_share_this", "detach_text")},
    examples=(
        "comet-cache push kin.zarr ssh://lab.example.org/data/kin.zarr",
        "comet-cache push kin.zarr shared/kin.zarr --detach-text     to those who have the text",
    ),
)
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.option("--i-may-share-this", is_flag=True, help="Go on where a text's licence is unknown or restricts its use.")
@detach_option
@one_line_errors
def push(source: str, destination: str, i_may_share_this: bool, detach_text: bool) -> None:
    """Copy the cache in the folder SRC to DST, a folder or a URL that fsspec can write to.

    A cache holds its text word for word: share it only where you may share the text. With --detach-text the text stays
    here, and only who has it, too, can train; what the teacher says of it is not anonymous all the same. Beside the
    cache goes a README.md that says what it is. Run again it moves only what is missing: after a stop, or when more has
    been built.
    """
    from cache_tools.sharing.card import require_consent, say_whose
    from cache_tools.sharing.detached import offered
    from cache_tools.sharing.listing import read_listing
    from cache_tools.sharing.locations.folder import Folder
    from cache_tools.sharing.locations.location import locate
    from cache_tools.sharing.locations.remote import RetryPolicy
    from cache_tools.sharing.plan import plan
    from cache_tools.sharing.transfer import carry_out
    from cache_tools.sharing.upload import leave_card

    policy = RetryPolicy()
    here, to = locate(source, policy), locate(destination, policy)
    if not isinstance(here, Folder):
        raise CometError(f"{here.name}: push copies from a folder; from another location, pull", exit_code=2)
    found = read_listing(here, policy)
    part = Part(detach_text=detach_text)
    has_text = offered(found.cache.extent, part).has_text
    say_whose(found.cache.provenance, has_text)
    if has_text:
        way_out = "; if not, leave it out with --detach-text"
        require_consent(found.cache.provenance, source, i_may_share_this, way_out)
    planned = plan(found, to, part, policy)
    with to.staging():
        carry_out(planned, "push", policy)
        leave_card(planned, policy)
    require_all(planned)
    click.echo(f"{to.name}: complete" + ", without its text" * (not planned.extent.has_text))
    click.echo(shown("cache_id", planned.cache_id))


def say_share(part: Part, cache: "Cache", extent: "Extent", records: list["ShardRecord"]) -> None:
    """A line where the smallest part that there is is larger than the fraction asked for."""
    from cache_tools.sharing.parts import bytes_of

    if part.fraction is None or len(extent.indices("train")) > 1:
        return
    whole = replace(cache.extent, arrays=extent.arrays)
    share = bytes_of(cache.seal, extent, records) / bytes_of(cache.seal, whole, records)
    if share > part.fraction * LARGER:
        click.echo(
            f"{share:.0%} of the bytes instead of {part.fraction:.0%}: vocabulary and validation always come along, "
            "and one training shard"
        )


def require_all(planned: "Plan") -> None:
    """Raises CometError when shards are missing at the source, too."""
    if planned.missing:
        raise CometError(
            f"{planned.source.location.name}: {len(planned.missing)} shards are not built yet; what there is has "
            "arrived. Run the same command again when there is more"
        )


@click.command(
    cls=GroupedHelp,
    sections={"Which part": PART},
    examples=(
        "comet-cache subset kin.zarr part.zarr --fraction 0.1",
        "comet-cache subset kin.zarr without-text.zarr --detach-text",
    ),
)
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("destination", metavar="DST", type=click.Path(path_type=Path))
@part_options
@one_line_errors
def subset(source: Path, destination: Path, **options: Any) -> None:
    """Copy a part of the cache SRC into the folder DST: a complete smaller cache, or one without its text.

    All validation shards come along, so that students of the part are measured like those of the whole. Nothing is
    overwritten; run again after a stop, it goes on.
    """
    from cache_tools.sharing.detached import offered
    from cache_tools.sharing.parts import part_extent
    from cache_tools.store.copy import cut
    from cache_tools.store.reader import open_cache

    part = Part(**options)
    if part == Part():
        raise CometError("subset: which part? Give --fraction, --max-tokens, --signals or --detach-text", exit_code=2)
    cache = open_cache(source)
    held = offered(cache.extent, part)
    extent = part_extent(cache.recipe, cache.seal, held, records_of(cache), part, source)
    say_share(part, cache, extent, records_of(cache))
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
    from cache_tools.store.copy import merge
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
    from cache_tools.cli.info import describe

    facts = describe(cache)
    for name in ("state", "part", "text_detached", "bytes", "cache_id"):
        if name in facts:
            click.echo(f"{cache.root}: {printable(facts[name])}" if name == "state" else shown(name, facts[name]))


def shown(name: str, value: object) -> str:
    return f"  {name.replace('_', ' '):<18} {printable(value)}"
