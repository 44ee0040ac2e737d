"""Measures of a model for quality.py: against the teacher's dense outputs on unseen text, and on a task."""

import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer

from cache_tools.models import max_positions
from comet.evaluate.datasets import TaskData
from comet.evaluate.finetuning import (
    FineTuning,
    default_learning_rate,
    encode,
    fine_tune,
    load_for_task,
    predict,
)
from comet.report.analysis import calibration, expected_calibration_error
from comet.student.vocabulary import StudentVocabulary

ROW_TOKENS = 126
MASK_PROB = 0.15
UNSEEN_LINES = 1500
EPOCHS = 3
BATCH = 16
RESAMPLES = 400
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Unseen:
    """Masked rows of text that neither cache nor student saw, and what the teacher says at the targets."""

    inputs: Tensor  # [R, L]
    target: Tensor  # [R, L] bool
    truth: Tensor  # [T]
    logprob: Tensor  # [T, V'] of the teacher among some tokens, such as those of a corpus
    seen: Tensor  # [V'] the ids of these tokens, ascending


def lines_of(shared: Path, language: str) -> list[str]:
    return lzma.decompress((shared / f"data/text/{language}.txt.xz").read_bytes()).decode().split("\n")


@torch.no_grad()
def unseen_text(language: str, shared: Path, teacher: str, ids: NDArray, rows: int) -> Unseen:
    """The first lines of a language, which `training_lines` leaves out, masked at tokens of these ids."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    lines = lines_of(shared, language)[:UNSEEN_LINES]
    stream = [
        i for ids in tokenizer(lines, add_special_tokens=False)["input_ids"] for i in [*ids, tokenizer.eos_token_id]
    ]
    starts = range(0, len(stream) - ROW_TOKENS, ROW_TOKENS)
    whole = torch.tensor(
        [[tokenizer.bos_token_id, *stream[s : s + ROW_TOKENS], tokenizer.eos_token_id] for s in starts][:rows]
    )
    seen = torch.from_numpy(ids.astype("int64"))
    eligible = torch.isin(whole, seen) & ~torch.isin(whole, torch.tensor(tokenizer.all_special_ids))
    target = (torch.rand(whole.shape, generator=torch.Generator().manual_seed(0)) < MASK_PROB) & eligible
    inputs = whole.masked_fill(target, tokenizer.mask_token_id)
    model = AutoModelForMaskedLM.from_pretrained(teacher, dtype=torch.float32).eval()
    return Unseen(inputs, target, whole[target], log_probs(model, inputs, target, seen), seen)


def training_lines(shared: Path, language: str) -> str:
    return "\n".join(lines_of(shared, language)[UNSEEN_LINES:])


@torch.no_grad()
def log_probs(model: Any, inputs: Tensor, target: Tensor, columns: Tensor) -> Tensor:
    """[T, columns] at the targets, among these tokens."""
    parts = zip(inputs.split(16), target.split(16), strict=True)
    return torch.cat([model(i).logits[t][:, columns].float().log_softmax(-1) for i, t in parts])


def dense_measures(model: Any, vocabulary: StudentVocabulary, unseen: Unseen, unknown: int) -> dict[str, float]:
    """Means over the targets, among the tokens of `unseen`, for a student or the teacher itself.

    `unknown` is the teacher's id, which stands for what the student has no id for.
    """
    ids = vocabulary.student_id[unseen.inputs]
    inputs = torch.where(ids < 0, int(vocabulary.student_id[unknown]), ids)
    logprob = log_probs(model, inputs, unseen.target, vocabulary.student_id[unseen.seen])
    index = torch.searchsorted(unseen.seen, unseen.truth)
    confidence, best = logprob.exp().max(1)
    correct = best == index
    return {
        "dense_kl": (unseen.logprob.exp() * (unseen.logprob - logprob)).sum(1).mean().item(),
        "loss": -logprob.gather(1, index[:, None]).mean().item(),
        "accuracy": correct.float().mean().item(),
        "calibration_error": expected_calibration_error(calibration(confidence.numpy(), correct.numpy())),
    }


def on_task(model: str, data: TaskData, seed: int, epochs: int) -> dict[str, Any]:
    """The score of a model folder after fine-tuning with this seed, and its predictions as one letter each."""
    task = data.task
    loaded, tokenizer = load_for_task(model, task, seed)
    length = min(task.max_length, max_positions(loaded.config))
    train, reported = (encode(tokenizer, split.examples, task, length) for split in (data.train, data.reported))
    how = FineTuning(epochs, BATCH, default_learning_rate(loaded.config.hidden_size, task.tagging))
    fine_tune(loaded, train, task, how, seed, CPU, Path(model).name)
    predicted = predict(loaded, reported, task, 32, CPU)
    numbers = [task.labels.index(label) for (label,) in predicted]
    return {"score": task.score(reported.labels, predicted), "predicted": "".join(map(str, numbers))}


def resampled_scores(
    data: TaskData, plain: list[str], student: list[str], teacher: list[str], seed: int = 0
) -> np.ndarray:
    """Mean scores of the plain student, the student and the teacher [1 + RESAMPLES, 3]: on all test items, then on
    items drawn with replacement, alike for all. Each argument holds the predictions of every seed."""
    task, gold = data.task, [example.labels for example in data.reported.examples]

    def scores(drawn: np.ndarray) -> list[float]:
        chosen = [gold[i] for i in drawn]
        return [
            float(np.mean([task.score(chosen, [(task.labels[int(one[i])],) for i in drawn]) for one in models]))
            for models in (plain, student, teacher)
        ]

    draws = np.random.default_rng(seed).integers(0, len(gold), (RESAMPLES, len(gold)))
    return np.array([scores(drawn) for drawn in (np.arange(len(gold)), *draws)])


def retained_gain(scores: np.ndarray) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """(share, low, high) of the teacher's score that the student retains, and of its gain over the plain student that
    the student has, with percentile bootstraps of 95 %.

    `scores` [languages, 1 + RESAMPLES, 3] as `resampled_scores` gives them. The share is the mean of the languages'
    shares; the gain is Σ (student − plain) ÷ Σ (teacher − plain), as a single language's difference may be near zero.
    """
    base, ours, theirs = np.moveaxis(scores, 2, 0)  # each [languages, 1 + RESAMPLES]
    shares = (ours / theirs).mean(0), (ours - base).sum(0) / (theirs - base).sum(0)
    share, gain = ((float(of[0]), *map(float, np.quantile(of[1:], [0.025, 0.975]))) for of in shares)
    return share, gain
