"""Stage 2 of comet: training a student from caches, without loading a teacher."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comet.distillation import distill
    from comet.preparation import open_for_training
    from comet.settings import Distilled, StudentConfig
    from comet.train.trainer import DistillationTrainer

__all__ = ["DistillationTrainer", "Distilled", "StudentConfig", "distill", "open_for_training"]

_LAZY = {
    "DistillationTrainer": "train.trainer",
    "Distilled": "settings",
    "StudentConfig": "settings",
    "distill": "distillation",
    "open_for_training": "preparation",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `comet-train --help` does not wait for torch."""
    if name == "__version__":
        from importlib.metadata import version

        return version("comet-distill")
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"comet.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'comet' has no attribute {name!r}")
