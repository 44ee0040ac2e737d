"""Compare an exported model with torch on real text of several lengths, alone and padded in batches."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from cache_tools.errors import CometError
from comet.export.onnx_model import open_session, run

LARGEST_DIFFERENCE = 1e-4  # of float32 logits
LEAST_AGREEMENT = 0.9  # of int8: share of the positions with torch's best class or token
LARGEST_VARIATION = 0.05  # of int8: mean total variation
BATCHES = (1, 1, 1, 2, 3, 5)  # texts per batch, repeated
SENTENCES = 96
LONG_TEXT = 20_000  # characters
SLICE = 64  # positions compared at a time: a vocabulary may have 250,002 tokens

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Comparison:
    """Two models compared over all positions (tokens, or whole texts).

    `difference` is the largest absolute difference of two logits, `agreement` the share of positions with the same best
    class or token, `variation` the mean total variation ½ Σ |p − q| between the two distributions.
    """

    positions: int
    difference: float
    agreement: float
    variation: float

    @property
    def agreed(self) -> str:
        """`agreement` in percent, rounded down: 100.0% are all positions, and 90.0% are enough."""
        return f"{math.floor(1000 * self.agreement + 1e-9) / 10:.1f}%"


def check_export(
    folder: Path, model: PreTrainedModel, tokenizer: Any, int8: bool, sentences: Sequence[str]
) -> Comparison:
    """Compare model.onnx and tokenizer.json in `folder` with the torch model and its tokenizer, on these sentences.

    torch runs the texts one by one, the exported model in padded batches. Raises CometError if the tokens of a text or
    the outputs differ by more than is allowed.
    """
    texts = _check_texts(sentences, tokenizer.mask_token if "MaskedLM" in type(model).__name__ else None)
    ids = [tokenizer(text, truncation=True)["input_ids"] for text in texts]  # at model_max_length
    alone = _deployed_tokenizer(folder, tokenizer)
    for text, expected in zip(texts, ids, strict=True):
        if (found := alone.encode(text).ids) != expected:
            raise CometError(
                f"{model.name_or_path}: its tokenizer.json alone gives {found[:8]} … instead of {expected[:8]} … for "
                f"{text[:40]!r}, so it needs transformers; nothing was exported"
            )
    expected_logits = (_of_torch(model, row) for row in ids)
    compared = compare(expected_logits, _of_onnx(folder / "model.onnx", texts, alone))
    require_close(compared, int8, str(model.name_or_path))
    return compared


def require_close(compared: Comparison, int8: bool, name: str) -> None:
    """Raise CometError if the exported model differs too much from torch, or a figure is NaN."""
    if int8 and not (compared.agreement >= LEAST_AGREEMENT and compared.variation <= LARGEST_VARIATION):
        raise CometError(
            f"{name}: in int8 its best answer is torch's at {compared.agreed} of {compared.positions:,} "
            f"positions and the distributions differ by {compared.variation:.4f}; expected at least "
            f"{LEAST_AGREEMENT:.0%} and at most {LARGEST_VARIATION}; export it without --int8"
        )
    if not int8 and not compared.difference <= LARGEST_DIFFERENCE:
        raise CometError(
            f"{name}: the exported logits differ from torch's by {compared.difference:.3g}, expected at most "
            f"{LARGEST_DIFFERENCE:g}; nothing was exported. Try other versions of torch and onnxruntime"
        )


def _deployed_tokenizer(folder: Path, tokenizer: Any) -> Tokenizer:
    """Return the tokenizer of an exported folder as its README.md loads it, without transformers."""
    deployed = Tokenizer.from_file(str(folder / "tokenizer.json"))
    deployed.enable_padding(pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    deployed.enable_truncation(tokenizer.model_max_length)
    return deployed


def _check_texts(sentences: Sequence[str], mask_token: str | None) -> list[str]:
    """Return an empty text, one longer than any input, and some of the sentences, each with one word masked if a mask
    is given."""
    some = sentences[:: max(1, len(sentences) // SENTENCES)][:SENTENCES]
    if mask_token is not None:
        some = [_masked(line, i, mask_token) for i, line in enumerate(some)]
    once = " ".join(sentences)
    return ["", " ".join([once] * (1 + LONG_TEXT // len(once))), *some]


def _masked(sentence: str, index: int, mask_token: str) -> str:
    words = sentence.split(" ")
    words[index % len(words)] = mask_token
    return " ".join(words)


@torch.no_grad()
def _of_torch(model: PreTrainedModel, ids: Sequence[int]) -> Logits:
    """Return torch's logits of one text, [positions, classes or vocabulary]."""
    row = torch.tensor([ids])
    logits: torch.Tensor = model(input_ids=row, attention_mask=torch.ones_like(row)).logits
    return logits.reshape(-1, logits.shape[-1]).numpy()


def _of_onnx(path: Path, texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[Logits]:
    """Yield the exported model's logits of each text, computed in padded batches of BATCHES."""
    session, start, turn = open_session(path), 0, 0
    while start < len(texts):
        batch = tokenizer.encode_batch(texts[start : start + BATCHES[turn % len(BATCHES)]])
        start, turn = start + len(batch), turn + 1
        input_ids = np.array([encoding.ids for encoding in batch])  # [B, L]
        mask = np.array([encoding.attention_mask for encoding in batch])  # [B, L]
        for length, logits in zip(mask.sum(1), run(session, input_ids, mask), strict=True):
            yield logits[:length] if logits.ndim == 2 else logits[None]


def compare(expected: Iterator[Logits], found: Iterator[Logits]) -> Comparison:
    """Compare the [positions, classes] of all texts. Raises ValueError if shapes or numbers of texts differ."""
    positions, difference, agreed, variation = 0, 0.0, 0, 0.0
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape:
            raise ValueError(f"logits of shape {other.shape}, expected {one.shape}")
        for start in range(0, len(one), SLICE):
            a, b = one[start : start + SLICE].astype(np.float64), other[start : start + SLICE].astype(np.float64)
            positions += len(a)
            difference = float(np.maximum(difference, np.abs(a - b).max()))  # NaN stays
            agreed += int((a.argmax(1) == b.argmax(1)).sum())
            variation += float(np.abs(_softmax(a) - _softmax(b)).sum() / 2)
    return Comparison(positions, difference, agreed / positions, variation / positions)


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the softmax over the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
