"""Detailed figures on a student: each target, attention maps, and the predictions in rows of text."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from cache_tools.progress import show_progress
from cache_tools.store.reader import Cache
from comet.train.dataset import CacheRows, CacheShard, Collator, arrays_to_read, collate
from comet.train.distiller import MOST_BLOCKS, Distiller
from comet.train.signals import Batch
from comet.train.validation import validation_rows

MOST_TARGETS = 20_000
BATCH_ROWS = 32
EXAMPLE_ROWS = 2  # of one cache; of several, one of each
MOST_POSITIONS = 12
GUESSES = 3
LONGEST_TOKEN = 40
CALIBRATION_BINS = 10


@dataclass(frozen=True)
class MapPair:
    """Pooled attention [queries, keys] float32 of a matched layer over the blocks that one row uses.

    `row` is the number of the example. Its rows sum to 1. `overlap`, 0 to 1, is the attention that both give to the
    same blocks: Σ min(teacher, student), mean over the blocks of queries.
    """

    row: int
    teacher_layer: int
    student_layer: int
    teacher: NDArray[np.float32]
    student: NDArray[np.float32]
    overlap: float


@dataclass(frozen=True)
class Guess:
    """A predicted token as text, its probability, and whether it is the label."""

    text: str
    probability: float
    correct: bool


@dataclass(frozen=True)
class MaskedPosition:
    """A target of a row: its label, and the most probable tokens of teacher and student, best first."""

    position: int
    label: str
    teacher: list[Guess]
    student: list[Guess]


@dataclass(frozen=True)
class AnnotatedRow:
    """The tokens of a row as the models saw it, masks and replacements included, and its first targets; `name` says
    which row it is."""

    name: str
    tokens: list[str]
    positions: list[MaskedPosition]
    targets: int  # of the whole row


@dataclass(frozen=True)
class Analysis:
    """The first T ≤ MOST_TARGETS validation targets one by one, and the first rows as examples.

    target_id, count [T] int64: the label, and its occurrences in the corpus; kl [T] nats at temperature 1, NaN if the
    cache holds no tail at it; correct, teacher_correct, agrees [T] bool, of the most probable tokens; confidence,
    teacher_confidence [T]: the probabilities of these tokens.
    """

    target_id: NDArray[np.int64]
    count: NDArray[np.int64]
    kl: NDArray[np.float64]
    correct: NDArray[np.bool_]
    teacher_correct: NDArray[np.bool_]
    agrees: NDArray[np.bool_]
    confidence: NDArray[np.float64]
    teacher_confidence: NDArray[np.float64]
    maps: list[MapPair]
    examples: list[AnnotatedRow]
    parameters: int
    teacher_parameters: int


def analyse(
    distiller: Distiller,
    shards: list[CacheShard],
    tokenizer: PreTrainedTokenizerBase,
    counts: NDArray,
    device: torch.device,
    collator: Collator | None = None,
) -> Analysis:
    """Measure the student on the first rows of these shards, on equally many targets of each cache.

    `counts` [V] int64 are the occurrences of each token in the corpus. `counts` and `tokenizer` take the ids of the
    batches of `collator`, by default those of the cache.
    """
    collator = collator or partial(collate, recipe=distiller.cache)
    parts: list[dict[str, NDArray]] = []
    corpora = {shard.corpus for shard in shards}
    for corpus in sorted(corpora):
        left, rows = MOST_TARGETS // len(corpora), validation_rows([one for one in shards if one.corpus == corpus])
        loader = DataLoader(rows, batch_size=BATCH_ROWS, collate_fn=collator)  # type: ignore[arg-type]
        for batch in show_progress(loader, "analyse", "batch", leave=False):
            found = _measure({name: tensor.to(device) for name, tensor in batch.items()}, distiller)
            parts.append({name: values[:left] for name, values in found.items()})
            left -= len(parts[-1]["target_id"])
            if not left:
                break
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    maps, examples = look_at_rows(distiller, shards, tokenizer, device, collator)
    return Analysis(
        **arrays,
        count=np.asarray(counts, dtype=np.int64)[arrays["target_id"]],
        maps=maps,
        examples=examples,
        parameters=sum(p.numel() for p in distiller.student.parameters()),
        teacher_parameters=distiller.cache.teacher_parameters,
    )


def _measure(batch: Batch, distiller: Distiller) -> dict[str, NDArray]:
    """Return the per-target arrays [T] of an Analysis, but `count`, for one batch."""
    found, label = distiller.evaluate(batch), batch["target_id"]
    arrays = {
        "target_id": label,
        "kl": found.kl.double(),
        "correct": found.best == label,
        "teacher_correct": found.teacher_best == label,
        "agrees": found.best == found.teacher_best,
        "confidence": found.confidence.double(),
        "teacher_confidence": found.teacher_confidence.double(),
    }
    return {name: tensor.cpu().numpy() for name, tensor in arrays.items()}


def look_at_rows(
    distiller: Distiller,
    shards: list[CacheShard],
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    collator: Collator | None = None,
) -> tuple[list[MapPair], list[AnnotatedRow]]:
    """Return maps of the first rows, of several caches one of each, and the predictions in these rows; no maps if
    attention is not matched."""
    collator = collator or partial(collate, recipe=distiller.cache)
    rows = CacheRows(shards, arrays_to_read(distiller.cache, distiller.matches_attention), held=1)
    names = _example_rows(shards)
    batch = {name: tensor.to(device) for name, tensor in collator(rows.__getitems__(list(names))).items()}
    found = distiller.evaluate(batch)
    examples = [
        AnnotatedRow(name, *_decode_row(row, batch, found.features, distiller, tokenizer))
        for row, name in enumerate(names.values())
    ]
    return map_pairs(batch, found.attention, distiller) if distiller.matches_attention else [], examples


def _example_rows(shards: Sequence[CacheShard]) -> dict[int, str]:
    """Return the running indices of the rows to show, each with its name."""
    first: dict[Cache, int] = {}
    begin = 0
    for shard in shards:
        first.setdefault(shard.cache, begin)
        begin += shard.rows
    if len(first) > 1:
        return {row: f"{Path(cache.name).name}, validation row 1" for cache, row in first.items()}
    return {row: f"Validation row {row + 1}" for row in range(min(EXAMPLE_ROWS, begin))}


def map_pairs(batch: Batch, attention: Tensor, distiller: Distiller) -> list[MapPair]:
    """Return the maps of teacher and student in each row of a batch and each matched layer, from the student's rows of
    attention [B, layers, S, L]."""
    sampled = distiller.attention_targets.sampled(batch, distiller.cached_index)
    size = min(attention.shape[2], MOST_BLOCKS)
    teacher = sampled.pooled(sampled.rows(attention.shape[3]), size)
    student = sampled.pooled(attention, size)
    queries, keys = (used.sum(1).tolist() for used in sampled.used_blocks(size))
    pairs = []
    for row, (q, k) in enumerate(zip(queries, keys, strict=True)):
        for index, (teacher_layer, student_layer) in enumerate(distiller.matched):
            theirs, mine = teacher[row, index, :q, :k], student[row, index, :q, :k]  # [queries, keys]
            overlap = torch.minimum(theirs, mine).sum(1).mean().item()
            pairs.append(MapPair(row, teacher_layer, student_layer, theirs.cpu().numpy(), mine.cpu().numpy(), overlap))
    return pairs


@torch.no_grad()
def _decode_row(
    row: int, batch: Batch, features: Tensor, distiller: Distiller, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[str], list[MaskedPosition], int]:
    """Return the tokens of one row, the predictions at its first MOST_POSITIONS targets, and how many it has."""
    targets = torch.nonzero(batch["target_row"] == row)[:, 0]
    shown = targets[:MOST_POSITIONS]
    weight, bias = distiller.output_layer()
    corpus = distiller.corpus(batch)
    logits = torch.addmm(bias if corpus is None else bias[corpus[shown]], features[shown], weight.T)  # [positions, V]
    student = logits.softmax(1).topk(min(GUESSES, logits.shape[1]))
    kept_id = distiller.targets.kept_id(batch, 1.0)[shown]
    teacher = distiller.targets.teacher_logprob(batch)[shown].exp().topk(min(GUESSES, kept_id.shape[1]))
    teacher_id = kept_id.gather(1, teacher.indices)

    def guesses(ids: Tensor, probabilities: Tensor, label: int) -> list[Guess]:
        return [
            Guess(token_text(tokenizer, token), probability, token == label)
            for token, probability in zip(ids.tolist(), probabilities.tolist(), strict=True)
            if token >= 0 and probability > 0
        ]

    positions = [
        MaskedPosition(
            position=int(batch["target_position"][shown[i]]),
            label=token_text(tokenizer, label),
            teacher=guesses(teacher_id[i], teacher.values[i], label),
            student=guesses(student.indices[i], student.values[i], label),
        )
        for i, label in enumerate(batch["target_id"][shown].tolist())
    ]
    ids = batch["input_ids"][row, : int(batch["length"][row])].tolist()
    return [token_text(tokenizer, token) for token in ids], positions, len(targets)


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Return a token as text, ▁ before it if it begins a word, cut at LONGEST_TOKEN characters; its id if unknown."""
    name = tokenizer.convert_ids_to_tokens(token)
    if not isinstance(name, str):
        return f"[{token}]"
    start = "▁" if name.startswith(("▁", "Ġ")) else ""
    text = start + tokenizer.convert_tokens_to_string([name]).strip() or name
    return text if len(text) <= LONGEST_TOKEN else text[: LONGEST_TOKEN - 1] + "…"


@dataclass(frozen=True)
class FrequencyBin:
    """The targets whose label occurs `low` to `high` times in the corpus, and the means over them."""

    low: int
    high: int
    targets: int
    kl: float
    accuracy: float
    teacher_accuracy: float


def by_frequency(analysis: Analysis) -> list[FrequencyBin]:
    """Return one bin for each decade of the count that has targets: 0 to 9, 10 to 99, 100 to 999, …"""
    powers = 10 ** np.arange(1, 19, dtype=np.int64)
    decade = np.searchsorted(powers, analysis.count, side="right")
    bins = []
    for number in np.unique(decade).tolist():
        inside = decade == number
        figures = (analysis.kl, analysis.correct, analysis.teacher_correct)
        means = (float(values[inside].mean()) for values in figures)
        bins.append(FrequencyBin(10**number if number else 0, 10 ** (number + 1) - 1, int(inside.sum()), *means))
    return bins


@dataclass(frozen=True)
class CalibrationBin:
    """The targets with a confidence in (low, high], and the means over them."""

    low: float
    high: float
    targets: int
    confidence: float
    accuracy: float


def calibration(confidence: NDArray, correct: NDArray, bins: int = CALIBRATION_BINS) -> list[CalibrationBin]:
    """Return equally wide bins B_b = (b / M, (b + 1) / M] of the confidence [T], without empty ones; 0 is in the first.

    The reliability diagram of Guo et al. 2017, On calibration of modern neural networks (arXiv 1706.04599).
    """
    edges = np.arange(bins + 1) / bins
    number = np.searchsorted(edges[1:-1], confidence, side="left")
    return [
        CalibrationBin(
            low=float(edges[b]),
            high=float(edges[b + 1]),
            targets=int((number == b).sum()),
            confidence=float(confidence[number == b].mean()),
            accuracy=float(correct[number == b].mean()),
        )
        for b in np.unique(number).tolist()
    ]


def expected_calibration_error(bins: list[CalibrationBin]) -> float:
    """Return ECE = Σ_b |B_b| / T · |accuracy(B_b) − confidence(B_b)| (Guo et al. 2017, equation 3); NaN if T = 0."""
    total = sum(b.targets for b in bins)
    return sum(b.targets * abs(b.accuracy - b.confidence) for b in bins) / total if total else float("nan")
