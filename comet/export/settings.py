"""The options of `comet-export`."""

import os
from dataclasses import dataclass
from pathlib import Path

from cache_tools.checks import as_path, require_truth
from cache_tools.errors import CometError
from cache_tools.places.destinations import require_place


@dataclass(frozen=True)
class ExportSettings:
    """The options of `comet-export`: a model's folder, whether to quantise to 8 bits, and the folder to create.

    Raises CometError if the model is no folder, or the output exists or cannot be created.
    """

    model: Path
    int8: bool = False
    output: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", as_path(self.model, "MODEL"))
        if self.output is not None:
            object.__setattr__(self, "output", as_path(self.output, "--output"))
        require_truth(self.int8, "--int8")
        if not os.path.isdir(self.model):
            raise CometError(
                f"{self.model}: no such folder; expected one written by comet-train or comet-eval --output", exit_code=2
            )
        if os.path.exists(self.folder):
            raise CometError(f"{self.folder}: exists; give another --output, or remove it", exit_code=2)
        require_place(self.folder, "--output")

    @property
    def folder(self) -> Path:
        return self.output or Path(f"{self.model.resolve().name}-onnx{'-int8' if self.int8 else ''}")
