"""Whether an exported model says what torch says: on real text, of several lengths, alone and padded in batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedModel

import cache_tools.sample
from cache_tools.errors import CometError
from comet.evaluate.finetuning import pad_id
from comet.export.onnx_model import open_session, run

LARGEST_DIFFERENCE = 1e-4  # of float32 logits
LEAST_AGREEMENT = 0.9  # of int8: share of the positions with torch's best class or token
LARGEST_VARIATION = 0.05  # of int8: mean total variation
BATCHES = (1, 1, 1, 2, 3, 5)  # texts a batch, over and over
SENTENCES = 96
SLICE = 64  # positions compared at a time: a vocabulary may have 250,002 tokens

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Comparison:
    """Two models over all positions (tokens, or whole texts).

    `difference` is the largest between two logits, `agreement` the share of positions with the same best class or
    token, `variation` the mean total variation ½ Σ |p − q| between the two distributions.
    """

    positions: int
    difference: float
    agreement: float
    variation: float


def check_export(folder: Path, model: PreTrainedModel, tokenizer: Any, int8: bool) -> Comparison:
    """Compares model.onnx and tokenizer.json in `folder` with the torch model and its tokenizer.

    torch reads the texts one by one, the exported model in padded batches. Raises CometError when a text becomes
    other tokens, or the outputs differ by more than what is allowed.
    """
    texts = check_texts(tokenizer.mask_token if "MaskedLM" in type(model).__name__ else None)
    longest = tokenizer.model_max_length
    ids = [tokenizer(text, truncation=True, max_length=longest)["input_ids"] for text in texts]
    alone = deployed_tokenizer(folder, longest)
    for text, expected in zip(texts, ids, strict=True):
        if (found := alone.encode(text).ids) != expected:
            raise CometError(
                f"{model.name_or_path}: its tokenizer.json alone gives {found[:8]} … instead of {expected[:8]} … for "
                f"{text[:40]!r}, so it cannot be used without transformers; nothing was exported"
            )
    expected_logits = (of_torch(model, row) for row in ids)
    compared = compare(expected_logits, of_onnx(folder / "model.onnx", ids, pad_id(model)))
    require_close(compared, int8, str(model.name_or_path))
    return compared


def require_close(compared: Comparison, int8: bool, name: str) -> None:
    """Raises CometError when the exported model may not be trusted. A figure that is NaN is never close."""
    if int8 and not (compared.agreement >= LEAST_AGREEMENT and compared.variation <= LARGEST_VARIATION):
        raise CometError(
            f"{name}: in int8 its best answer is torch's at {compared.agreement:.1%} of {compared.positions:,} "
            f"positions and the distributions differ by {compared.variation:.3f}; expected at least "
            f"{LEAST_AGREEMENT:.0%} and at most {LARGEST_VARIATION}; export it without --int8"
        )
    if not int8 and not compared.difference <= LARGEST_DIFFERENCE:
        raise CometError(
            f"{name}: the exported logits differ from torch's by {compared.difference:.3g}, expected at most "
            f"{LARGEST_DIFFERENCE:g}; nothing was exported. Try other versions of torch and onnxruntime"
        )


def deployed_tokenizer(folder: Path, longest: int) -> Tokenizer:
    """The tokenizer of an exported folder, without transformers."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    return tokenizer


def check_texts(mask_token: str | None) -> list[str]:
    """Nothing, sentences, and a text longer than any model reads; with a mask for a word where models fill masks in."""
    lines = Path(cache_tools.sample.__file__).with_name("text.txt").read_text(encoding="utf-8").splitlines()
    sentences = lines[:: max(1, len(lines) // SENTENCES)]
    if mask_token is not None:
        sentences = [masked(line, i, mask_token) for i, line in enumerate(sentences)]
    return ["", " ".join(lines), *sentences]


def masked(sentence: str, index: int, mask_token: str) -> str:
    words = sentence.split(" ")
    words[index % len(words)] = mask_token
    return " ".join(words)


@torch.no_grad()
def of_torch(model: PreTrainedModel, ids: Sequence[int]) -> Logits:
    """[positions, classes or vocabulary] of one text."""
    row = torch.tensor([ids])
    logits: torch.Tensor = model(input_ids=row, attention_mask=torch.ones_like(row)).logits
    return logits.reshape(-1, logits.shape[-1]).numpy()


def of_onnx(path: Path, ids: Sequence[Sequence[int]], pad: int) -> Iterator[Logits]:
    """The same of each text, computed in batches of BATCHES."""
    session, start, turn = open_session(path), 0, 0
    while start < len(ids):
        rows = ids[start : start + BATCHES[turn % len(BATCHES)]]
        start, turn = start + len(rows), turn + 1
        length = max(map(len, rows))
        input_ids = np.array([[*row, *[pad] * (length - len(row))] for row in rows])  # [B, L]
        mask = np.array([[1] * len(row) + [0] * (length - len(row)) for row in rows])  # [B, L]
        for row, logits in zip(rows, run(session, input_ids, mask), strict=True):
            yield logits[: len(row)] if logits.ndim == 2 else logits[None]


def compare(expected: Iterator[Logits], found: Iterator[Logits]) -> Comparison:
    """Over all texts' [positions, classes]. Raises ValueError where their numbers differ."""
    positions, difference, agreed, variation = 0, 0.0, 0, 0.0
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape:
            raise ValueError(f"logits of shape {other.shape}, expected {one.shape}")
        for start in range(0, len(one), SLICE):
            a, b = one[start : start + SLICE].astype(np.float64), other[start : start + SLICE].astype(np.float64)
            positions += len(a)
            difference = float(np.maximum(difference, np.abs(a - b).max()))  # NaN stays
            agreed += int((a.argmax(1) == b.argmax(1)).sum())
            variation += float(np.abs(softmax(a) - softmax(b)).sum() / 2)
    return Comparison(positions, difference, agreed / positions, variation / positions)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
