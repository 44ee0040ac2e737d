"""The summary of an export: the README.md beside the model, and the last lines of the command."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from transformers import PreTrainedModel

from cache_tools.templates import render
from comet.export.check import LARGEST_DIFFERENCE, LARGEST_VARIATION, LEAST_AGREEMENT, Comparison
from comet.report.examples import example_comment
from comet.report.origin import origin_of

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
        f"torch's best answer at {compared.agreed} of the positions (at least {LEAST_AGREEMENT:.0%}), mean "
        f"total variation {compared.variation:.4f} (at most {LARGEST_VARIATION}), largest difference of a logit "
        f"{compared.difference:.2g}"
    )


def card(
    model: PreTrainedModel, tokenizer: Any, name: str, int8: bool, size: int, compared: Comparison, text: str
) -> str:
    """Return the README.md of an exported folder of this name. `size` in bytes, of model.onnx; `text`: on what it was
    compared with torch."""
    pipeline = PIPELINES[type(model).__name__.partition("For")[2]]
    folder = Path(str(model.name_or_path))
    origin = origin_of(folder)
    return render(
        "comet.report", "exported.md.jinja",
        metadata=ModelCardData(
            language=origin.languages or None, license=origin.license, base_model=origin.base_model,
            pipeline_tag=pipeline, tags=["onnx"],
        ),
        name=folder.resolve().name, folder=name, pipeline=pipeline, tokenizer=tokenizer,
        int8=int8, mib=size / 2**20, torch_mib=sum(p.nbytes for p in model.parameters()) / 2**20,
        measured=_measured(int8, compared), positions=compared.positions,
        text=text, comment=example_comment(origin.languages), origin=origin,
    )  # fmt: skip


def last_lines(output: Path, int8: bool, size: int, compared: Comparison, text: str) -> str:
    """Return the last lines of `comet-export`."""
    return (
        f"{output}: {size / 2**20:,.1f} MiB; {_measured(int8, compared)}, at {compared.positions:,} positions of "
        f"{text}\n"
        f"{output / 'README.md'} says how to run it"
    )
