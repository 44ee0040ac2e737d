"""comet-cache attach."""

from pathlib import Path

import click

from cache_tools.cli.help import GroupedHelp
from cache_tools.cli.parts import CacheFolder, show_result
from cache_tools.cli.terminal import one_line_errors, quiet_libraries

SECTIONS = {"Text": ("text", "exclude")}
EXAMPLES = (
    "comet-cache attach kin.zarr --text corpus.txt.xz",
    "comet-cache attach kin.zarr --text corpus.txt.xz --exclude afrisenti     as it was built",
)


@click.command("attach", cls=GroupedHelp, sections=SECTIONS, examples=EXAMPLES)
@click.argument("cache", type=CacheFolder())
@click.option(
    "--text",
    multiple=True,
    required=True,
    help="Text of the cache, as in comet-cache build: file, folder or hf:NAME[:CONFIG]. Repeatable.",
)
@click.option("--exclude", multiple=True, help="Evaluation files that it was built with, if any. Repeatable.")
@one_line_errors
def attach_text(cache: Path, text: tuple[str, ...], exclude: tuple[str, ...]) -> None:
    """Attach the text to the detached cache CACHE, from your own copy of it.

    A cache shared with --detach-text holds the teacher's signals and hashes of the text. The tokens are made again by
    the cache's recipe, limits included, and compared with the hashes, shard by shard. Nothing changes unless all match;
    then the cache is the same as one that never lacked its text.
    """
    from cache_tools.store.reader import open_cache

    found = open_cache(cache)
    quiet_libraries()
    from cache_tools.build.attach import attach  # with torch, for which a wrong path should not wait

    attached = attach(found, text, exclude)
    if attached is found:
        click.echo(f"{cache}: already holds its text; nothing to attach")
    show_result(attached)
