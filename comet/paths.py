"""Paths that a training writes to: the student's folder, and the files and folders beside it."""

import os
from pathlib import Path

from cache_tools.errors import CometError
from cache_tools.places.destinations import require_place


def report_path(output: Path) -> Path:
    """Return the path of the page about the student."""
    return output.with_name(f"{output.name}.html")


def checkpoints_path(output: Path) -> Path:
    """Return the folder of checkpoints, which exists while a training is not finished."""
    return output.with_name(f"{output.name}.checkpoints")


def runs_path(output: Path) -> Path:
    """Return the folder of TensorBoard's files after a training, if they were asked for."""
    return output.with_name(f"{output.name}.runs")


def options_path(output: Path) -> Path:
    """Return the path of the options that train the student again."""
    return output.with_name(f"{output.name}.toml")


def require_free(output: Path) -> None:
    """Raise CometError if the student's folder, or a file that comes beside it, exists or could not be created."""
    if not os.path.exists(output):  # unlike Path.exists, also False for a name that no disk takes
        require_place(output, "--output")
    elif not output.name:
        raise CometError(f"--output {output}: exists; choose another --output", exit_code=2)
    places = output, report_path(output), options_path(output), runs_path(output)
    if found := [str(path) for path in places if path.exists()]:
        exists, it = ("exists", "it") if len(found) == 1 else ("exist", "them")
        raise CometError(f"{', '.join(found)}: {exists}; choose another --output or remove {it} first", exit_code=2)
