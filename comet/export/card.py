"""What a person is told of an exported model: the README.md beside it, and the last lines of the command."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from comet.export.check import LARGEST_DIFFERENCE, LARGEST_VARIATION, LEAST_AGREEMENT, Comparison

PIPELINES = {
    "MaskedLM": "fill-mask",
    "SequenceClassification": "text-classification",
    "TokenClassification": "token-classification",
}
ANSWERS = {
    "fill-mask": """\
for text, encoding, row in zip(texts, encodings, logits):
    for position, token in enumerate(encoding.ids):
        if token == tokenizer.token_to_id("{mask}"):
            best = row[position].argsort()[::-1][:5]
            print(text, [tokenizer.id_to_token(int(i)) for i in best])""",
    "text-classification": """\
labels = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
for text, row in zip(texts, logits):
    print(text, labels[str(row.argmax())])""",
    "token-classification": """\
labels = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
for words, encoding, row in zip(texts, encodings, logits):
    first = {{}}  # where the first piece of each word stands, which speaks for it
    for position, word in enumerate(encoding.word_ids):
        if word is not None:
            first.setdefault(word, position)
    print([(words[word], labels[str(row[position].argmax())]) for word, position in first.items()])""",
}
TEXTS = {
    "fill-mask": '["Umwana yagiye ku {mask}.", "Muraho {mask}"]',
    "text-classification": '["Umwana yagiye ku ishuri.", "Muraho neza"]',
    "token-classification": '["Mukamana yagiye i Kigali".split(), "Muraho neza".split()]',
}


def pipeline_of(model: PreTrainedModel) -> str:
    return PIPELINES[type(model).__name__.partition("For")[2]]


def snippet(pipeline: str, tokenizer: Any, folder: str) -> str:
    """A script that runs the model in `folder` with onnxruntime, tokenizers and numpy alone."""
    mask = tokenizer.mask_token or ""
    imports = "" if pipeline == "fill-mask" else "import json\n"
    return f"""{imports}from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder = Path({folder!r})
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.enable_padding(pad_id={tokenizer.pad_token_id}, pad_token="{tokenizer.pad_token}")
tokenizer.enable_truncation({tokenizer.model_max_length})
session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])

texts = {TEXTS[pipeline].format(mask=mask)}
encodings = tokenizer.encode_batch(texts{", is_pretokenized=True" if pipeline == "token-classification" else ""})
inputs = {{
    "input_ids": np.array([encoding.ids for encoding in encodings]),
    "attention_mask": np.array([encoding.attention_mask for encoding in encodings]),
}}
(logits,) = session.run(["logits"], inputs)
{ANSWERS[pipeline].format(mask=mask)}
"""


def measured(int8: bool, compared: Comparison) -> str:
    """How near the exported model is to torch."""
    if not int8:
        return f"largest difference of a logit to torch {compared.difference:.1e} (allowed {LARGEST_DIFFERENCE:g})"
    return (
        f"torch's best answer at {compared.agreement:.1%} of the positions (at least {LEAST_AGREEMENT:.0%}), mean "
        f"total variation {compared.variation:.4f} (at most {LARGEST_VARIATION}), largest difference of a logit "
        f"{compared.difference:.2g}"
    )


def card(model: PreTrainedModel, tokenizer: Any, name: str, int8: bool, size: int, compared: Comparison) -> str:
    """The README.md of an exported folder of this name. `size` in bytes, of model.onnx."""
    pipeline, weights = pipeline_of(model), sum(p.nbytes for p in model.parameters())
    own = (
        "\nActivations are quantised by the range of the batch they are in, so an answer may depend a little on what "
        "else is in the batch: send texts one by one where that matters.\n"
        if int8
        else ""
    )
    return f"""---
pipeline_tag: {pipeline}
tags: [onnx]
---
# {Path(str(model.name_or_path)).resolve().name} as ONNX{", int8" if int8 else ""}

| | MiB |
|---|---|
| model.onnx, {"weights in 8 bits" if int8 else "float32"} | {size / 2**20:,.1f} |
| the same weights in torch, float32 | {weights / 2**20:,.1f} |

Compared with torch at {compared.positions:,} positions of Kinyarwanda text, alone and padded:
{measured(int8, compared)}.
{own}
`pip install onnxruntime tokenizers`, then, beside this folder,

```python
{snippet(pipeline, tokenizer, name)}```

The licence is that of the model this was made from: its own README.md names what it comes from.
"""


def last_lines(output: Path, int8: bool, size: int, compared: Comparison) -> str:
    """The last lines of `comet-export`."""
    return (
        f"{output}: {size / 2**20:,.1f} MiB; {measured(int8, compared)}, at {compared.positions:,} positions\n"
        f"{output / 'README.md'} says how to run it"
    )
