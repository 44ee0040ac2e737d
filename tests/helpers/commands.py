"""`comet-cache` in this process."""

from pathlib import Path

from click.testing import CliRunner, Result

from cache_tools import Cache, open_cache
from cache_tools.cli.main import main


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def pull(source: object, folder: Path, *options: object) -> Cache:
    done = run("pull", source, folder, *options)
    assert done.exit_code == 0, done.output
    return open_cache(folder)
