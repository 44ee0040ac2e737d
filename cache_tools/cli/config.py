"""`--config FILE`: read the options of a command from a TOML file, by their long names; and write such files."""

import json
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click
import tomli_w

from cache_tools.cli.terminal import WrongCall
from cache_tools.errors import CometError

NOT_IN_FILES = ("config", "help", "version")

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=lambda context, parameter, path: _read_defaults(context, path),
    help="TOML file of these options, such as batch-size = 8; the command line takes precedence.",
)


class TextOrTable(click.ParamType):
    """A string, or in a file a table."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if isinstance(value, dict) else str(value)


def _read_defaults(context: click.Context, path: Path | None) -> None:
    """Make the values of the file the defaults of the command. Raises WrongCall if it is invalid."""
    if path is not None:
        try:
            context.default_map = options_of(path, context.command.params)
        except CometError as error:
            raise WrongCall(str(error)) from error


def options_of(path: Path, parameters: list[click.Parameter]) -> dict[str, Any]:
    """Return the values in a file by the names of click's parameters.

    Dashes and underscores mean the same. Raises CometError for an unknown option, with the nearest name, an option that
    is given twice, and a value of another type.
    """
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise CometError(f"--config {path}: cannot be read ({error.strerror})", exit_code=2) from error
    except ValueError as error:  # tomllib's and Unicode's errors
        raise CometError(f"--config {path}: not TOML: {error}", exit_code=2) from error
    known = {option.removeprefix("--"): p for p in parameters for option in p.opts if option.startswith("--")}
    known = {name: parameter for name, parameter in known.items() if name not in NOT_IN_FILES}
    values: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("_", "-")
        if name not in known:
            near = get_close_matches(name, known, n=1)
            advice = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(sorted(known))}"
            raise CometError(f"--config {path}: unknown option {key!r}; {advice}", exit_code=2)
        parameter = known[name]
        if parameter.name in values:
            raise CometError(f"--config {path}: {name} is given twice, with dashes and with underscores", exit_code=2)
        values[str(parameter.name)] = _value_of(parameter, value, f"--config {path}: {key}")
    return values


def _value_of(parameter: click.Parameter, value: Any, where: str) -> Any:
    """Return a TOML value as click takes it. A list stands for a repeated option, or for one that takes commas."""

    def require(ok: bool, expected: str) -> None:
        if not ok:
            raise CometError(f"{where} = {json.dumps(value, default=str)}: expected {expected}", exit_code=2)

    if getattr(parameter, "is_flag", False):
        require(isinstance(value, bool), "true or false")
        return value
    if isinstance(value, dict):
        require(parameter.multiple or isinstance(parameter.type, TextOrTable), "a value, not a table")
        return [f"{name}={setting!r}" for name, setting in value.items()] if parameter.multiple else value
    if isinstance(value, list):
        require(not any(isinstance(part, list | dict | bool) for part in value), "a list of strings or numbers")
    else:
        require(isinstance(value, str | int | float) and not isinstance(value, bool), "a string or a number")
    parts = [str(part) for part in value] if isinstance(value, list) else [value]
    require(not any("\0" in str(part) for part in parts), "text without NUL")
    if parameter.multiple:
        return parts
    return ",".join(parts) if isinstance(value, list) else value


def as_toml(options: Mapping[str, Any]) -> str:
    """Return a file for `--config`, without options that are None or {}.

    Every character that is not printable is escaped, also those that TOML allows, since terminals may obey them.
    """
    return "".join(c if c.isprintable() or c == "\n" else f"\\U{ord(c):08x}" for c in tomli_w.dumps(_plain(options)))


def _plain(value: Any) -> Any:
    """Return the value in the types that TOML has: no None in tables, and text for everything else that it lacks."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items() if part not in (None, {})}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if isinstance(value, str | int | float) else str(value)
