"""Training objectives as `--recipe` takes them: by name, or as a TOML file that changes one."""

import os
import tomllib
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from cache_tools.checks import require_text
from cache_tools.errors import CometError
from comet.train.objective import DEFAULT, PAPER, WEIGHTS, Objective, Schedule, Steps

OBJECTIVES = {objective.name: objective for objective in (DEFAULT, PAPER)}
NOT_IN_FILES = ("name", "differs_from_paper")


def choose_objective(requested: str | dict[str, Any]) -> Objective:
    """Return a built-in objective by name, or one that a TOML file, or a table of one, derives from it.

    Raises CometError if there is no such objective or file, or its names or values are invalid.
    """
    if isinstance(requested, dict):
        return _changed_objective(requested, "recipe", "--config: recipe")
    if requested in OBJECTIVES:
        return OBJECTIVES[requested]
    path = Path(requested)
    if not os.path.isfile(path):  # unlike Path.is_file, also False for a name that no disk takes
        raise CometError(
            f"--recipe {requested}: no such objective; expected {', '.join(OBJECTIVES)}, or a TOML file", exit_code=2
        )
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # tomllib's and Unicode's errors
        raise CometError(f"--recipe {requested}: {error}", exit_code=2) from None
    return _changed_objective(given, path.stem, f"--recipe {requested}")


def _changed_objective(given: dict[str, Any], name: str, where: str) -> Objective:
    """Return the objective `base`, by default DEFAULT, with the given changes. Raises CometError, `where` first."""
    try:
        base = given.get("base", DEFAULT.name)
        require_text(base, "base", tuple(OBJECTIVES))
        known = {field.name for field in fields(Objective)} - set(NOT_IN_FILES)
        if unknown := sorted(set(given) - known - {"base"}):
            raise CometError(f"unknown field {', '.join(unknown)}; expected some of {', '.join(sorted(known))}")
        changed = {field: _of_toml(field, value) for field, value in given.items() if field != "base"}
        return replace(OBJECTIVES[base], name=name, differs_from_paper=(), **changed)
    except CometError as error:
        raise CometError(f"{where}: {error}", exit_code=2) from None


def as_option(objective: Objective) -> str | dict[str, Any]:
    """Return the value for `choose_objective` that gives this objective: a built-in name, else a table."""
    if objective in OBJECTIVES.values():
        return objective.name
    table = asdict(objective)  # a Schedule becomes the table that `_of_toml` takes
    if isinstance(objective.temperature, Steps):
        table["temperature"] = objective.temperature.pairs
    return {name: value for name, value in table.items() if name not in NOT_IN_FILES}


def _of_toml(name: str, value: Any) -> Any:
    """Return a field's value from TOML, where a schedule is a table, and pairs are lists."""
    if name in WEIGHTS and isinstance(value, dict):
        if not {"start", "end"} <= set(value) <= {"start", "end", "shape"}:
            raise CometError(f'{name}: expected a number or {{ start = 1.0, end = 0.0, shape = "linear" }}')
        try:
            return Schedule(**value)
        except CometError as error:
            raise CometError(f"{name}: {error}") from None
    if name in ("temperature", "layer_map") and isinstance(value, list):
        pairs = tuple(tuple(pair) if isinstance(pair, list) else pair for pair in value)
        return Steps(pairs) if name == "temperature" else pairs
    return value
