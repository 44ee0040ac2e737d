"""`comet-export`: load a model, export it, compare it with torch, and publish it with all it takes to run."""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cache_tools.checks import as_path, require_truth
from cache_tools.errors import CometError
from cache_tools.models import loading_errors, max_positions
from cache_tools.places.destinations import require_place, writing
from cache_tools.text.model_tokenizer import load_model_tokenizer, save_tokenizer
from comet.publish import published_folder

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
HEADS: dict[str, Any] = {
    "MaskedLM": AutoModelForMaskedLM,
    "SequenceClassification": AutoModelForSequenceClassification,
    "TokenClassification": AutoModelForTokenClassification,
}
LONGEST = 512  # tokens, also of models with more positions


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


def export(settings: ExportSettings, say: Callable[[str], None] = print) -> Path:
    """Write a folder of model.onnx, tokenizer, config.json and README.md. It gets its name once all of it is checked.

    Raises CometError if a package is missing, the model cannot be loaded or exported, or its outputs differ from
    torch's.
    """
    _require_packages()
    from comet.export.card import card, last_lines
    from comet.export.check import check_export
    from comet.export.onnx_model import write_int8, write_onnx

    output, (model, tokenizer) = settings.folder, load(settings.model)
    with writing(output, "make room, then run the same command again"), published_folder(output) as folder:
        say(f"exporting a {type(model).__name__} of {sum(p.numel() for p in model.parameters()):,} parameters")
        save_tokenizer(tokenizer, folder)
        model.config.save_pretrained(folder)
        write_onnx(model, folder / "model.onnx")
        compared = check_export(folder, model, tokenizer, int8=False)
        if settings.int8:
            exact = (folder / "model.onnx").rename(folder / "float32.onnx")
            write_int8(exact, folder / "model.onnx")
            exact.unlink()
            compared = check_export(folder, model, tokenizer, int8=True)
        size = (folder / "model.onnx").stat().st_size
        text = card(model, tokenizer, output.name, settings.int8, size, compared)
        (folder / "README.md").write_text(text, encoding="utf-8")
    say(last_lines(output, settings.int8, size, compared))
    return output


def _require_packages() -> None:
    """Raise CometError with the command that installs them if packages of the extra `onnx` are absent."""
    if absent := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise CometError(f"comet-export needs {', '.join(absent)}: pip install 'comet-distill[onnx]'")


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a masked LM, or a classifier of texts or tokens, in float32 on the CPU; safetensors, no code, no network.

    Returns model and tokenizer, which truncates at the longest input of the model.
    Raises CometError if it is another kind of model, cannot be loaded, or lacks weights.
    """
    expected = "config.json, model.safetensors and tokenizer.json, as comet-train or comet-eval --output writes them"
    with loading_errors(f"{folder}:", expected, exit_code=2):
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        (architecture,) = config.architectures or ("none",)
        head = HEADS.get(architecture.partition("For")[2])
        if head is None:
            raise CometError(
                f"{folder}: a model of architecture {architecture}; expected a masked LM, or a classifier of texts or "
                "tokens",
                exit_code=2,
            )
        model, loaded = head.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        tokenizer = load_model_tokenizer(folder, str(folder))
    if missing := sorted(loaded["missing_keys"]):
        raise CometError(
            f"{folder}: its weights lack {', '.join(missing[:4])}{', …' if len(missing) > 4 else ''}, which would be "
            "random numbers; get the model again"
        )
    if not tokenizer.is_fast:
        raise CometError(f"{folder}: its tokenizer has no tokenizer.json, which is needed to run without transformers")
    tokenizer.model_max_length = min(tokenizer.model_max_length, max_positions(model.config), LONGEST)
    return model.eval(), tokenizer
