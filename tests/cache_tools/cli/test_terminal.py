"""What a command says when it ends before its time."""

import click
from click.testing import CliRunner

from cache_tools.cli.terminal import one_line_errors


def test_ctrl_c_is_one_line_that_says_how_to_go_on() -> None:
    @click.command()
    @one_line_errors
    def command() -> None:
        raise KeyboardInterrupt

    done = CliRunner().invoke(command)
    assert (done.exit_code, done.output) == (1, "stopped; run the same command again\n")
    assert CliRunner().invoke(command, ["--debug"]).output.strip() == "Aborted!"


def test_a_signal_says_how_to_go_on_in_its_own_words() -> None:
    @click.command()
    @one_line_errors
    def command() -> None:
        raise KeyboardInterrupt("stopped at once; --resume continues \x1b[1m")

    done = CliRunner().invoke(command)
    assert (done.exit_code, done.output) == (1, "stopped at once; --resume continues \\x1b[1m\n")
