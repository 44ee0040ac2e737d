"""comet-cache push and pull."""

from typing import TYPE_CHECKING, Any

import click

from cache_tools.cli.help import GroupedHelp
from cache_tools.cli.parts import PART, detach_option, part_options, report_larger_part, show_result
from cache_tools.cli.terminal import fact_line, one_line_errors
from cache_tools.errors import CometError
from cache_tools.interrupts import stop_on_signal
from cache_tools.places.destinations import require_folder
from cache_tools.settings import Part

if TYPE_CHECKING:
    from cache_tools.sharing.plan import Plan


@click.command(
    cls=GroupedHelp,
    sections={"Which part": PART, "Which cache": ("expected_id",)},
    examples=(
        "comet-cache pull https://lab.example.org/kin.zarr kin.zarr",
        "comet-cache pull shared/kin.zarr kin.zarr --fraction 0.1 --detach-text     a tenth, if you have the text",
    ),
)
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@part_options
@click.option("--id", "expected_id", metavar="CACHE_ID", help="Refuse SRC unless it, or this part of it, has this id.")
@one_line_errors
def pull(source: str, destination: str, expected_id: str | None, **options: Any) -> None:
    """Copy the cache at SRC, whole or in part, into the folder DST.

    SRC is a folder or a URL: ssh://HOST/DIR, https://…, s3://BUCKET/DIR, hf://datasets/NAME, or any other that fsspec
    supports. Every file is checked against the ledger before it gets its name. Run again to copy only what is missing:
    after a stop, when more has been built, or for a larger part.
    """
    from cache_tools.sharing.listing import read_listing
    from cache_tools.sharing.locations.folder import Folder
    from cache_tools.sharing.locations.location import locate
    from cache_tools.sharing.plan import plan
    from cache_tools.sharing.retry import RetryPolicy
    from cache_tools.sharing.transfer import run_plan
    from cache_tools.store.reader import open_cache
    from cache_tools.store.recipe import is_digest

    part, policy = Part(**options), RetryPolicy()
    if expected_id is not None and not is_digest(expected_id):
        raise CometError(f"--id {expected_id[:64]!r}: expected a cache id, 64 hexadecimal digits", exit_code=2)
    to = locate(destination, policy)
    if not isinstance(to, Folder):
        raise CometError(f"{to.name}: pull copies into a folder; to copy elsewhere, pull and then push", exit_code=2)
    require_folder(to.root, "DST")
    here = locate(source, policy)
    if isinstance(here, Folder):
        require_folder(to.root, "DST", here.root)
    with stop_on_signal(None, "stopped; run the same command again to continue", here.close):
        planned = plan(read_listing(here, policy), to, part, policy, expected_id)
        report_larger_part(part, planned.source.cache, planned.extent, list(planned.source.records.values()))
        with to.staging():
            run_plan(planned, "pull", policy)
    _require_all_built(planned)
    show_result(open_cache(to.root))


@click.command(
    cls=GroupedHelp,
    sections={"The text": ("i_may_share_this", "detach_text")},
    examples=(
        "comet-cache push kin.zarr ssh://lab.example.org/data/kin.zarr",
        "comet-cache push kin.zarr shared/kin.zarr --detach-text     for people who have the text",
    ),
)
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.option("--i-may-share-this", is_flag=True, 
              help="Push even if the licence of a text or of the teacher is unknown or restricts its use.")  # fmt: skip
@detach_option
@one_line_errors
def push(source: str, destination: str, i_may_share_this: bool, detach_text: bool) -> None:
    """Copy the cache in the folder SRC to DST, a folder or a URL that fsspec can write to.

    A cache holds its text word for word, and layers of its teacher: share it only if you may share both. With
    --detach-text the text stays here, and only people who already have it can train; even so, the teacher's signals
    are not anonymous. A README.md that describes the cache is written beside it. Run again to copy only what is
    missing: after a stop, or when more has been built.
    """
    from cache_tools.sharing.card import print_licences, require_consent
    from cache_tools.sharing.listing import read_listing
    from cache_tools.sharing.locations.folder import Folder
    from cache_tools.sharing.locations.location import locate
    from cache_tools.sharing.parts import detach
    from cache_tools.sharing.plan import plan
    from cache_tools.sharing.retry import RetryPolicy
    from cache_tools.sharing.transfer import run_plan
    from cache_tools.sharing.upload import write_card

    policy = RetryPolicy()
    here, to = locate(source, policy), locate(destination, policy)
    if not isinstance(here, Folder):
        raise CometError(f"{here.name}: push copies from a folder; to copy from elsewhere, pull first", exit_code=2)
    if isinstance(to, Folder):
        require_folder(to.root, "DST", here.root)
    listing = read_listing(here, policy)
    part = Part(detach_text=detach_text)
    has_text = detach(listing.cache, part).has_text
    has_start = bool(listing.cache.recipe.start_layers)
    print_licences(listing.cache.provenance, has_start, has_text)
    require_consent(listing.cache.provenance, source, i_may_share_this, has_start, has_text, detachable=True)
    planned = plan(listing, to, part, policy)
    with to.staging():
        run_plan(planned, "push", policy)
        write_card(planned, policy)
    _require_all_built(planned)
    click.echo(f"{to.name}: complete" + ("" if planned.extent.has_text else ", without its text"))
    click.echo(fact_line("cache_id", planned.cache_id))


def _require_all_built(planned: "Plan") -> None:
    """Raise CometError if the source itself lacks shards."""
    if planned.missing:
        raise CometError(
            f"{planned.source.location.name}: {len(planned.missing)} shards are not built yet; all others are copied. "
            "Run the same command again when more are built"
        )
