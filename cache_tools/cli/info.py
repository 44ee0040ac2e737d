"""comet-cache info and languages: the main facts about a cache, as text, JSON or options."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cache_tools.cli.config import as_toml
from cache_tools.cli.help import GroupedHelp
from cache_tools.cli.terminal import fact_line, one_line_errors, painted
from cache_tools.errors import printable
from cache_tools.interrupts import stop_on_signal
from cache_tools.places.urls import is_url, printable_url
from cache_tools.text.languages import LANGUAGES, language_table

if TYPE_CHECKING:
    from cache_tools.sharing.listing import Listing


def show_human(name: str | Path, facts: dict[str, Any]) -> None:
    """Print the facts about a cache of this name, its state first."""
    state = painted(facts["state"], fg="green" if facts["state"] == "complete" else "yellow")
    click.echo(f"{name}: {state}")
    for name, value in facts.items():
        if name != "state":
            click.echo(fact_line(name, value))


@click.command(cls=GroupedHelp)
@click.argument("cache")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--toml", is_flag=True, help="Print the options that build it again, for comet-cache build --config.")
@one_line_errors
def info(cache: str, as_json: bool, toml: bool) -> None:
    """Show what a cache holds, its origin, progress and size.

    CACHE is a folder, or a URL as for pull, of which only the description is fetched.
    """
    from cache_tools.cli.facts import describe, describe_listing, local_sources, options_of_build
    from cache_tools.store.reader import open_cache

    listing = _listing_at(cache) if is_url(cache) else None
    found = open_cache(cache) if listing is None else listing.cache
    if toml:
        if local := local_sources(found):
            click.echo(f"# add the folders of these, which a cache does not record: {printable(', '.join(local))}")
        click.echo(as_toml(options_of_build(found)), nl=False)
        return
    facts = describe(found) if listing is None else describe_listing(listing)
    if as_json:
        click.echo(json.dumps(facts, indent=1))
    else:
        show_human(printable_url(cache), facts)


def _listing_at(url: str) -> "Listing":
    """Return the description of the cache at a URL."""
    from cache_tools.sharing.listing import read_listing
    from cache_tools.sharing.locations.location import locate
    from cache_tools.sharing.retry import RetryPolicy

    policy = RetryPolicy()
    location = locate(url, policy)
    with stop_on_signal(None, "stopped; run the same command again", location.close):
        return read_listing(location, policy)


@click.command(cls=GroupedHelp)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@one_line_errors
def languages(as_json: bool) -> None:
    """List the languages that AfroXLMR was adapted to, with codes and default corpora."""
    if as_json:
        facts = [{name: getattr(x, name) for name in ("code", "name", "synonyms", "corpora")} for x in LANGUAGES]
        click.echo(json.dumps(facts, indent=1))
    else:
        click.echo(language_table())
