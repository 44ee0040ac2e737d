"""`comet-cache` in this process."""

from click.testing import CliRunner, Result

from cache_tools.cli.main import main


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])
