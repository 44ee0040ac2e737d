"""Entry points of the console scripts: one clear line if another package owns the name `comet`.

They are in `cache_tools` and load `comet` by name after the check, because `comet` is the name that may be shadowed.
"""

import importlib.util
import sys
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def shadowed_by() -> str | None:
    """Return what owns the name `comet` instead of this project, None if it is ours."""
    try:
        distribution("unbabel-comet")
    except PackageNotFoundError:
        pass
    else:
        return "the package unbabel-comet (a translation metric)"
    spec = importlib.util.find_spec("comet")
    if spec is None or spec.origin is None or not Path(spec.origin).with_name("distillation.py").is_file():
        return str(spec.origin or "another folder") if spec else "nothing"
    return None


def _require_own_comet() -> None:
    if other := shadowed_by():
        print(
            f"error: the name `comet` belongs to {other} in this environment; it and comet-distill cannot share one. "
            "Make a new environment (python -m venv) and install comet-distill there",
            file=sys.stderr,
        )
        sys.exit(1)


def _start(command: str) -> None:
    """Run a command, found by name in the metadata of this distribution: `cache_tools` never imports `comet`."""
    _require_own_comet()
    (found,) = distribution("comet-distill").entry_points.select(group="comet_distill.commands", name=command)
    found.load()()


comet_cache = partial(_start, "comet-cache")
comet_train = partial(_start, "comet-train")
comet_eval = partial(_start, "comet-eval")
comet_export = partial(_start, "comet-export")
