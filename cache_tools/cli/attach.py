"""comet-cache attach."""

from pathlib import Path

import click

from cache_tools.cli.help import GroupedHelp
from cache_tools.cli.parts import show_result
from cache_tools.cli.terminal import one_line_errors, quiet_libraries

SECTIONS = {"What": ("text", "exclude")}
EXAMPLES = (
    "comet-cache attach kin.zarr --text corpus.txt.xz",
    "comet-cache attach kin.zarr --text corpus.txt.xz --exclude afrisenti     as it was built",
)


@click.command("attach", cls=GroupedHelp, sections=SECTIONS, examples=EXAMPLES)
@click.argument("cache", type=click.Path(path_type=Path))
@click.option(
    "--text",
    multiple=True,
    required=True,
    help="The text that the cache was made from, as in comet-cache build: file, folder, hf:NAME[:CONFIG]. Repeatable.",
)
@click.option(
    "--exclude", multiple=True, help="The evaluation files that it was built with, where there were any. Repeatable."
)
@one_line_errors
def attach_text(cache: Path, text: tuple[str, ...], exclude: tuple[str, ...]) -> None:
    """Give the detached cache CACHE its text again, from your own copy of it.

    A cache that was shared with --detach-text holds what the teacher said, and hashes of the text that it said it of.
    The tokens are made again as the cache's recipe says, limits included, and compared with these, shard by shard.
    Nothing is changed unless all are right. Then the cache is what it would have been with its text.
    """
    from cache_tools.build.attach import attach
    from cache_tools.store.reader import open_cache

    quiet_libraries()
    found = open_cache(cache)
    attached = attach(found, text, exclude)
    if attached is found:
        click.echo(f"{cache}: holds its text already; nothing to attach")
    show_result(attached)
