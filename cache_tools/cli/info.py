"""comet-cache info and languages: the main facts about a cache, as text, JSON or options."""

import json
from pathlib import Path
from typing import Any

import click

from cache_tools.cli.config import as_toml
from cache_tools.cli.help import GroupedHelp
from cache_tools.cli.terminal import fact_line, one_line_errors, painted
from cache_tools.errors import printable
from cache_tools.text.languages import LANGUAGES, language_table


def show_human(cache_path: Path, facts: dict[str, Any]) -> None:
    state = painted(facts["state"], fg="green" if facts["state"] == "complete" else "yellow")
    click.echo(f"{cache_path}: {state}")
    for name, value in facts.items():
        if name != "state":
            click.echo(fact_line(name, value))


@click.command(cls=GroupedHelp)
@click.argument("cache", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--toml", is_flag=True, help="Print the options that build it again, for comet-cache build --config.")
@one_line_errors
def info(cache: Path, as_json: bool, toml: bool) -> None:
    """Show what a cache holds, its origin, progress and size."""
    from cache_tools.cli.facts import describe, local_sources, options_of_build
    from cache_tools.store.reader import open_cache

    if toml:
        found = open_cache(cache)
        if local := local_sources(found):
            click.echo(f"# add the folders of these, which a cache does not record: {printable(', '.join(local))}")
        click.echo(as_toml(options_of_build(found)), nl=False)
        return
    facts = describe(open_cache(cache))
    if as_json:
        click.echo(json.dumps(facts, indent=1))
    else:
        show_human(cache, facts)


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
