"""Help: every option once, under a heading; examples that are calls."""

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from helpers import REPOSITORY

import cache_tools
import comet
from cache_tools.cli.attach import attach_text
from cache_tools.cli.build import build
from cache_tools.cli.help import GroupedHelp
from cache_tools.cli.main import main
from cache_tools.cli.parts import subset
from cache_tools.cli.transfer import pull, push
from comet.cli.evaluate import evaluate_models
from comet.cli.export import export_model
from comet.cli.train import train

COMMANDS = {
    "comet-cache build": build,
    "comet-cache attach": attach_text,
    "comet-cache push": push,
    "comet-cache pull": pull,
    "comet-cache subset": subset,
    "comet-train": train,
    "comet-eval": evaluate_models,
    "comet-export": export_model,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_stands_once_under_a_heading(name: str) -> None:
    command = COMMANDS[name]
    said = CliRunner().invoke(command, ["--help"], terminal_width=200).output
    for parameter in (one for one in command.params if isinstance(one, click.Option)):
        assert len(re.findall(rf"^  (?:-h, )?{parameter.opts[-1]}\b(?!-)", said, re.MULTILINE)) == 1, parameter.name
    headings = re.findall(r"^(\S[^:\n]*):$", said, re.MULTILINE)
    assert headings == [*command.sections, "Other", "Examples"]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_are_calls_that_can_be(name: str) -> None:
    command = COMMANDS[name]
    for line in command.examples:
        call = re.split(r"\s{2,}", line)[0]
        assert call.startswith(name + " ")
        context = command.make_context(name, shlex.split(call.removeprefix(name)))
        assert context.params


@pytest.mark.parametrize("command", [main, train, evaluate_models, export_model])
def test_the_version_is_that_of_the_package(command: click.Command) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    done = CliRunner().invoke(command, ["--version"])
    assert (done.exit_code, done.stderr) == (0, "")
    said = re.fullmatch(rf"comet-distill {re.escape(project['version'])}, Python (\S+), torch (\S+), .*\n", done.stdout)
    assert said is not None and said[2] == torch.__version__, done.stdout
    assert comet.__version__ == cache_tools.__version__ == project["version"]


def test_every_command_stands_once_under_a_heading() -> None:
    said = CliRunner().invoke(main, ["--help"], terminal_width=200).output
    listed = re.findall(r"^  (\w+) +\w", said.partition("Options:")[2], re.MULTILINE)
    assert sorted(listed) == sorted(main.commands)


def test_a_section_of_an_option_that_there_is_not() -> None:
    command = GroupedHelp("x", params=[click.Option(["--a"])], sections={"What": ["b"]})
    with pytest.raises(KeyError, match="b"):
        command.get_help(click.Context(command))


@pytest.mark.parametrize(
    "command", [*main.commands.values(), train, evaluate_models, export_model], ids=lambda c: c.name
)
def test_an_option_of_one_value_is_given_once(
    command: click.Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(command, GroupedHelp)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kin.zarr").mkdir()  # in the way of `build --sample --sample`, which is a call that can be
    for option in (one for one in command.params if isinstance(one, click.Option) and not one.multiple):
        name = option.opts[-1]
        given = [name, name] if option.is_flag else [name, "1", f"{name}=1"]
        said = CliRunner().invoke(command, given).stderr
        assert (said == f"error: {name}: given 2 times; give it once\n") is not option.is_flag, said


def test_an_option_that_may_be_repeated_and_one_of_a_file_that_is_given_again(tmp_path: Path) -> None:
    (tmp_path / "options.toml").write_text('lang = "swa"\n')
    given = ["--config", str(tmp_path / "options.toml"), "--lang", "kin", "--text", "no", "--text", "no", "--dry-run"]
    assert "given" not in CliRunner().invoke(build, given).stderr
