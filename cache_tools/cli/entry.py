"""Where the console scripts start: a clear line when another package owns the name `comet`.

It stands here, and imports `comet` only after the check, because `comet` is what may be shadowed.
"""

import importlib.util
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def shadowed_by() -> str | None:
    """What owns the name `comet` instead of this project, None if it is ours."""
    try:
        distribution("unbabel-comet")
    except PackageNotFoundError:
        pass
    else:
        return "the package unbabel-comet (a translation metric)"
    spec = importlib.util.find_spec("comet")
    if spec is None or spec.origin is None or not Path(spec.origin).with_name("distiller.py").is_file():
        return str(spec.origin or "another folder") if spec else "nothing"
    return None


def demand_own_comet() -> None:
    if other := shadowed_by():
        print(
            f"error: the name `comet` belongs to {other} in this environment; it and comet-distill cannot share one. "
            "Make a new environment (python -m venv) and install comet-distill there",
            file=sys.stderr,
        )
        sys.exit(1)


def comet_cache() -> None:
    demand_own_comet()
    from cache_tools.cli.main import main

    main()


def comet_train() -> None:
    demand_own_comet()
    from comet.cli.train import train

    train()


def comet_eval() -> None:
    demand_own_comet()
    from comet.cli.evaluate import evaluate_models

    evaluate_models()


def comet_export() -> None:
    demand_own_comet()
    from comet.cli.export import export_model

    export_model()
