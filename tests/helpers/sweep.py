"""Every option of a command, each with values that it can hardly mean, in this process."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from click.testing import CliRunner

VALUES = {
    "nan": "nan",
    "infinite": "inf",
    "minus infinite": "-inf",
    "negative": "-1",
    "zero": "0",
    "empty": "",
    "blank": " ",
    "a float beyond all": "1e400",
    "a whole number beyond all": "1" + "0" * 400,
    "a long name": "x" * 300,
    "a point": ".",
    "letters": "ĉéñ",
}
"""By a name for the ids of tests."""


@dataclass(frozen=True)
class Answer:
    """What a command said: exit code, output, the last line of its errors, and what it left in its folder."""

    code: int
    stdout: str
    error: str
    left: list[str]


def valued_options(command: click.Command) -> list[click.Option]:
    """The options that take a value."""
    return [one for one in command.params if isinstance(one, click.Option) and not one.is_flag]


def cases(command: click.Command) -> Iterator[tuple[str, str]]:
    """Every option by its long name, with every name of a value."""
    for option in valued_options(command):
        for name in VALUES:
            yield option.opts[-1], name


def everything(folder: Path) -> set[str]:
    """The paths of all files and folders below one (by os.walk, which takes a fifth of rglob's time)."""
    return {f"{at}/{name}" for at, folders, files in os.walk(folder) for name in folders + files}


def answer(command: click.Command, arguments: list[str], folder: Path) -> Answer:
    """Run a command, which should say what is wrong in one line: never a traceback, nothing unexpected. `folder` is the
    working folder, of which everything counts as left behind that was not there."""
    before = everything(folder)
    done = CliRunner().invoke(command, arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), (arguments, done.exception)
    said = done.stderr.strip()
    assert "Traceback" not in said and "unexpected" not in said, (arguments, said)
    left = sorted(os.path.relpath(path, folder) for path in everything(folder) - before)
    return Answer(done.exit_code, done.stdout, said.rpartition("\n")[2], left)
