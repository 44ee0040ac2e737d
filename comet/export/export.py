"""The whole of `comet-export`: a model loaded, exported, compared with torch, laid down with all it takes to run."""

import importlib.util
import tempfile
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
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cache_tools.errors import CometError
from comet.evaluate.finetuning import loading, longest_input

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
HEADS: dict[str, Any] = {
    "MaskedLM": AutoModelForMaskedLM,
    "SequenceClassification": AutoModelForSequenceClassification,
    "TokenClassification": AutoModelForTokenClassification,
}
LONGEST = 512  # tokens, of a model that has no limit of its own


@dataclass(frozen=True)
class ExportSettings:
    """What a person asks of `comet-export`: the folder of a model, 8 bits or not, and the folder to make.

    Raises CometError when the model is no folder or the output exists.
    """

    model: Path
    int8: bool = False
    output: Path | None = None

    def __post_init__(self) -> None:
        if not self.model.is_dir():
            raise CometError(
                f"{self.model}: no such folder; expected one that comet-train or comet-eval --output left", exit_code=2
            )
        if self.folder.exists():
            raise CometError(f"{self.folder}: exists; give another --output, or remove it", exit_code=2)

    @property
    def folder(self) -> Path:
        return self.output or Path(f"{self.model.resolve().name}-onnx{'-int8' if self.int8 else ''}")


def export(settings: ExportSettings, say: Callable[[str], None] = print) -> Path:
    """Writes the folder: model.onnx, tokenizer, config.json, README.md. It gets its name when all of it is checked.

    Raises CometError when a package is missing, the model cannot be loaded or exported, or what was exported does not
    say what torch says.
    """
    require_packages()
    from comet.export.card import card, last_lines
    from comet.export.check import check_export
    from comet.export.onnx_model import write_int8, write_onnx

    output, (model, tokenizer) = settings.folder, load(settings.model)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as staging:
        folder = Path(staging) / output.name  # inside, so that it is not as private as temporary folders are
        folder.mkdir()
        say(f"exporting a {type(model).__name__} of {sum(p.numel() for p in model.parameters()):,} parameters")
        tokenizer.save_pretrained(folder)
        model.config.save_pretrained(folder)
        write_onnx(model, folder / "model.onnx")
        compared = check_export(folder, model, tokenizer, int8=False)
        if settings.int8:
            exact = (folder / "model.onnx").rename(Path(staging) / "float32.onnx")
            write_int8(exact, folder / "model.onnx")
            compared = check_export(folder, model, tokenizer, int8=True)
        size = (folder / "model.onnx").stat().st_size
        text = card(model, tokenizer, output.name, settings.int8, size, compared)
        (folder / "README.md").write_text(text, encoding="utf-8")
        for path in folder.iterdir():
            path.chmod((folder / "README.md").stat().st_mode)  # temporary files are private by default
        try:
            folder.rename(output)
        except OSError as error:
            raise CometError(f"{output}: came to exist meanwhile; give another --output, or remove it") from error
    say(last_lines(output, settings.int8, size, compared))
    return output


def require_packages() -> None:
    """Raises CometError, saying how to install them, when a package of the extra `onnx` is absent."""
    if absent := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise CometError(f"comet-export needs {', '.join(absent)}: pip install 'comet-distill[onnx]'")


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A masked LM, or a classifier of texts or tokens, in float32 on the CPU, and its tokenizer, which cuts at what the
    model can read. From the folder alone: safetensors, no code, no network.

    Raises CometError when it is something else, cannot be loaded, or lacks weights.
    """
    expected = "config.json, model.safetensors and tokenizer.json, as comet-train or comet-eval --output leave them"
    with loading(str(folder), expected):
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
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if missing := sorted(loaded["missing_keys"]):
        raise CometError(
            f"{folder}: its weights lack {', '.join(missing[:4])}{', …' if len(missing) > 4 else ''}, which would be "
            "random numbers; get the model again"
        )
    if not tokenizer.is_fast:
        raise CometError(f"{folder}: its tokenizer has no tokenizer.json, which is what runs without transformers")
    tokenizer.model_max_length = min(longest_input(model), LONGEST)
    return model.eval(), tokenizer
