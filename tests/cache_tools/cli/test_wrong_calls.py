"""Calls that no command takes: one line in the form of every other error, with what was probably meant."""

import click
import pytest
from click.testing import CliRunner

from cache_tools.cli.main import main
from comet.cli.evaluate import evaluate_models
from comet.cli.train import train

ADVICE = "; see `%s --help`\n"


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (main, ["xyz"], "error: no such command 'xyz'" + ADVICE % "main"),
        (main, ["--out", "kin.zarr"], "error: no such option '--out'" + ADVICE % "main"),
        (main, ["info"], "error: missing argument 'CACHE'" + ADVICE % "main info"),
        (main, ["info", "a", "b"], "error: got unexpected extra argument (b)" + ADVICE % "main info"),
        (train, [], "error: missing option '--cache'" + ADVICE % "train"),
        (train, ["kin.zarr"], "error: kin.zarr: expected after an option; did you mean --cache kin.zarr?\n"),
        (
            train,
            ["--cache", "kin.zarr", "more"],
            "error: got unexpected extra argument (more)" + ADVICE % "train",
        ),
        (evaluate_models, ["kin-student"], "error: kin-student: expected after an option; did you mean --model"),
    ],
)
def test_a_wrong_call_is_one_line(command: click.Command, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(command, arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1, done.stderr


def test_no_command_shows_the_help() -> None:
    assert CliRunner().invoke(main, []).stdout == CliRunner().invoke(main, ["--help"]).stdout
