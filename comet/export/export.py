"""`comet-export`: load a model, export it, compare it with torch, and publish it with all it takes to run."""

import importlib.util
from collections.abc import Callable
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

from cache_tools.errors import CometError
from cache_tools.models import loading_errors, max_positions
from cache_tools.places.destinations import writing
from cache_tools.text.model_tokenizer import load_model_tokenizer, save_tokenizer
from comet.export.settings import ExportSettings
from comet.publish import published_folder

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
HEADS: dict[str, Any] = {
    "MaskedLM": AutoModelForMaskedLM,
    "SequenceClassification": AutoModelForSequenceClassification,
    "TokenClassification": AutoModelForTokenClassification,
}
LONGEST = 512  # tokens, also of models with more positions


def export(settings: ExportSettings, say: Callable[[str], None] = print) -> Path:
    """Write a folder of model.onnx, tokenizer, config.json and README.md. It gets its name once all of it is checked.

    Raises CometError if a package is missing, the model cannot be loaded or exported, or its outputs differ from
    torch's.
    """
    _require_packages()
    from comet.export.card import card, last_lines
    from comet.export.check import check_export
    from comet.export.onnx_model import write_int8, write_onnx
    from comet.export.texts import texts_for

    output, (model, tokenizer) = settings.folder, load(settings.model)
    with writing(output, "make room, then run the same command again"), published_folder(output) as folder:
        parameters = sum(p.numel() for p in model.parameters())
        say(f"exporting {settings.model}, {type(model).__name__} with {parameters:,} parameters")
        save_tokenizer(tokenizer, folder)
        model.config.save_pretrained(folder)
        write_onnx(model, folder / "model.onnx")
        texts = texts_for(settings.model)
        compared = check_export(folder, model, tokenizer, False, texts.sentences)
        if settings.int8:
            exact = (folder / "model.onnx").rename(folder / "float32.onnx")
            write_int8(exact, folder / "model.onnx")
            exact.unlink()
            compared = check_export(folder, model, tokenizer, True, texts.sentences)
        size = (folder / "model.onnx").stat().st_size
        text = card(model, tokenizer, output.name, settings.int8, size, compared, texts.described)
        (folder / "README.md").write_text(text, encoding="utf-8")
    say(last_lines(output, settings.int8, size, compared, texts.described))
    return output


def _require_packages() -> None:
    """Raise CometError with the command that installs them if packages of the extra `onnx` are absent."""
    if absent := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise CometError(f"comet-export needs {', '.join(absent)}: in the checkout, pip install '.[onnx]'")


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
