"""The summary of an export: the README.md beside the model, and the last lines of the command."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.repocard import metadata_load
from transformers import PreTrainedModel

from cache_tools.templates import render
from comet.export.check import LARGEST_DIFFERENCE, LARGEST_VARIATION, LEAST_AGREEMENT, Comparison
from comet.report.examples import example_comment

PIPELINES = {
    "MaskedLM": "fill-mask",
    "SequenceClassification": "text-classification",
    "TokenClassification": "token-classification",
}


def _measured(int8: bool, compared: Comparison) -> str:
    """Return the differences between the exported model and torch."""
    if not int8:
        return f"largest difference of a logit to torch {compared.difference:.1e} (allowed {LARGEST_DIFFERENCE:g})"
    return (
        f"torch's best answer at {compared.agreement:.1%} of the positions (at least {LEAST_AGREEMENT:.0%}), mean "
        f"total variation {compared.variation:.4f} (at most {LARGEST_VARIATION}), largest difference of a logit "
        f"{compared.difference:.2g}"
    )


def _languages(folder: Path) -> list[str]:
    """Return the codes of the languages that the card in a model's folder names; none without a card."""
    try:
        named = (metadata_load(folder / "README.md") or {}).get("language") or []
    except Exception:  # no such file, or metadata that is not YAML, for which the parser raises anything
        return []
    return [str(code) for code in (named if isinstance(named, list) else [named])]


def card(
    model: PreTrainedModel, tokenizer: Any, name: str, int8: bool, size: int, compared: Comparison, language: str
) -> str:
    """Return the README.md of an exported folder of this name. `size` in bytes, of model.onnx; `language` of the text
    that was compared."""
    pipeline = PIPELINES[type(model).__name__.partition("For")[2]]
    folder = Path(str(model.name_or_path))
    languages = _languages(folder)
    return render(
        "comet.report", "exported.md.jinja",
        metadata=ModelCardData(language=languages or None, pipeline_tag=pipeline, tags=["onnx"]),
        name=folder.resolve().name, folder=name, pipeline=pipeline, tokenizer=tokenizer,
        int8=int8, mib=size / 2**20, torch_mib=sum(p.nbytes for p in model.parameters()) / 2**20,
        measured=_measured(int8, compared), positions=compared.positions,
        language=language, comment=example_comment(languages),
    )  # fmt: skip


def last_lines(output: Path, int8: bool, size: int, compared: Comparison, language: str) -> str:
    """Return the last lines of `comet-export`."""
    return (
        f"{output}: {size / 2**20:,.1f} MiB; {_measured(int8, compared)}, at {compared.positions:,} positions of "
        f"{language} text\n"
        f"{output / 'README.md'} says how to run it"
    )
