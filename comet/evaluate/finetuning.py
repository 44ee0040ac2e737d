"""One masked LM, one task, one seed: a new head on the body, a fixed number of epochs, predictions.

No epoch is chosen by its score, so nothing that is reported has been selected on the split it is reported on.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers.utils.logging as transformers_logging
from torch import Tensor
from tqdm import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
)

from cache_tools.errors import CometError
from cache_tools.text.hub import model_folder
from comet.evaluate.datasets import Example
from comet.evaluate.tasks import Task

IGNORED = -100  # the label of a token that no loss is computed for
UNSEEN = -1  # the position of a word that no token stands for
WARMUP_SHARE = 0.1
WEIGHT_DECAY = 0.01
LARGEST_GRADIENT = 1.0
LARGEST_LEARNING_RATE = 5e-4


@dataclass(frozen=True)
class Encoded:
    """Examples as one model reads them; all lists have one entry an example.

    `input_ids` are at most the chosen length. `positions` says which token carries each label: 0 for a text, the
    first piece of each word of a sentence, UNSEEN for a word beyond that length or without any piece.
    """

    input_ids: list[list[int]]
    positions: list[list[int]]
    labels: list[tuple[str, ...]]
    truncated: int  # examples that were cut

    @property
    def unseen(self) -> int:
        """Words that the model is not shown, which count as not recognised."""
        return sum(row.count(UNSEEN) for row in self.positions)


def default_learning_rate(hidden: int) -> float:
    """2e-5, which the field uses for hidden size 1024, and more for narrower models: × (1024 / hidden)², up to 5e-4."""
    return min(2e-5 * (1024 / hidden) ** 2, LARGEST_LEARNING_RATE)


def model_files(name: str) -> Path:
    """Where the files of a model lie. Raises CometError as `model_folder` does."""
    return model_folder(name, f"--model {name}", "give --model FOLDER")


def load_for_task(name: str, task: Task, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A masked LM from a folder or the hub with a new head for the task, on the CPU in float32, and its tokenizer.

    The seed decides the head. Never runs code from the model.
    Raises CometError when it cannot be loaded, parts of its body are missing, or it has a head for a task already.
    """
    folder = model_files(name)
    head: Any = AutoModelForTokenClassification if task.tagging else AutoModelForSequenceClassification
    torch.manual_seed(seed)
    with loading(f"--model {name}", "a masked LM with config.json, model.safetensors and tokenizer.json"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model, loaded = head.from_pretrained(
            folder,
            num_labels=len(task.labels),
            id2label=dict(enumerate(task.labels)),
            label2id={label: i for i, label in enumerate(task.labels)},
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
        )
    body, new = f"{model.base_model_prefix}.", sorted(loaded["missing_keys"])
    if missing := [key for key in new if key.startswith(body) and not key.startswith(f"{body}pooler.")]:
        raise CometError(
            f"--model {name}: its weights lack {', '.join(missing[:4])}{', …' if len(missing) > 4 else ''}, which "
            "would be random numbers; get the model again"
        )
    if all(key.startswith(body) for key in new):
        raise CometError(
            f"--model {name}: has been fine-tuned for a task already; expected a masked LM, such as comet-train leaves",
            exit_code=2,
        )
    return model, tokenizer


@contextmanager
def loading(where: str, expected: str) -> Iterator[None]:
    """While a model is loaded: transformers does not report what is missing, which we check, and what it raises for a
    damaged or foreign folder, almost anything, becomes a CometError."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    except CometError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CometError(
            f"{where}: cannot be loaded; expected {expected}. transformers says: {reason}", exit_code=2
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def longest_input(model: PreTrainedModel) -> int:
    """The most tokens a model can read. RoBERTa's positions start after the padding id."""
    config: Any = model.config
    offset = config.pad_token_id + 1 if "roberta" in config.model_type else 0
    return int(getattr(config, "max_position_embeddings", sys.maxsize)) - offset


def encode(tokenizer: Any, examples: Sequence[Example], task: Task, max_length: int) -> Encoded:
    """The tokens of every example, cut to `max_length` with the special tokens kept, and where its labels stand."""
    texts = [list(example.parts) if task.tagging else example.parts[0] for example in examples]
    batch = tokenizer(texts, is_split_into_words=task.tagging, truncation=True, max_length=max_length)
    positions = [[0]] * len(examples)
    if task.tagging:
        positions = [first_pieces(batch.word_ids(i), len(example.parts)) for i, example in enumerate(examples)]
    return Encoded(
        input_ids=batch["input_ids"],
        positions=positions,
        labels=[example.labels for example in examples],
        truncated=sum(bool(encoding.overflowing) for encoding in batch.encodings),
    )


def first_pieces(word_ids: Sequence[int | None], words: int) -> list[int]:
    """Where the first piece of each word stands, UNSEEN for a word without one."""
    found = [UNSEEN] * words
    for position, word in reversed(list(enumerate(word_ids))):
        if word is not None:
            found[word] = position
    return found


def inputs_of(encoded: Encoded, rows: Sequence[int], pad_id: int, device: torch.device) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` [B, L] int64 of these examples, padded to the longest."""
    length = max(len(encoded.input_ids[row]) for row in rows)
    ids = torch.full((len(rows), length), pad_id)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        tokens = encoded.input_ids[row]
        ids[i, : len(tokens)] = torch.tensor(tokens)
        mask[i, : len(tokens)] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def targets_of(encoded: Encoded, rows: Sequence[int], task: Task, length: int) -> Tensor:
    """int64 label numbers: [B] for texts, [B, length] for sentences with IGNORED where no label stands."""
    number = {label: i for i, label in enumerate(task.labels)}
    if not task.tagging:
        return torch.tensor([number[encoded.labels[row][0]] for row in rows])
    targets = torch.full((len(rows), length), IGNORED)
    for i, row in enumerate(rows):
        for position, label in zip(encoded.positions[row], encoded.labels[row], strict=True):
            if position != UNSEEN:
                targets[i, position] = number[label]
    return targets


@dataclass(frozen=True)
class FineTuning:
    """How a model is fine-tuned: AdamW, the learning rate rising over a tenth of the steps, then falling to 0."""

    epochs: int
    batch_size: int
    learning_rate: float


def fine_tune(
    model: PreTrainedModel, encoded: Encoded, task: Task, how: FineTuning, seed: int, device: torch.device, name: str
) -> None:
    """Trains body and head on all examples; the same seed gives the same weights, to the bit on one kind of CPU.

    Raises CometError when the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout
    optimiser = torch.optim.AdamW(model.parameters(), lr=how.learning_rate, weight_decay=WEIGHT_DECAY)
    steps = how.epochs * math.ceil(len(encoded.labels) / how.batch_size)
    schedule = get_linear_schedule_with_warmup(optimiser, int(steps * WARMUP_SHARE), steps)
    model.to(device).train()  # type: ignore[arg-type]
    with tqdm(total=steps, desc=f"{name}, seed {seed}", unit="step", leave=False, disable=None) as bar:
        for rows in batches(len(encoded.labels), how.batch_size, how.epochs, generator):
            inputs = inputs_of(encoded, rows, pad_id(model), device)
            targets = targets_of(encoded, rows, task, inputs["input_ids"].shape[1]).to(device)
            loss = model(**inputs, labels=targets).loss
            if not torch.isfinite(loss):
                raise CometError(
                    f"{name}, seed {seed}: the loss is {loss.item()} at step {bar.n + 1} of {steps}; "
                    f"give a --learning-rate below {how.learning_rate:g}"
                )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            bar.update()
    model.eval()


def batches(count: int, size: int, epochs: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Row numbers of each batch, in a new order every epoch."""
    for _ in range(epochs):
        for part in torch.randperm(count, generator=generator).split(size):
            yield part.tolist()


@torch.no_grad()
def predict(
    model: PreTrainedModel, encoded: Encoded, task: Task, batch_size: int, device: torch.device
) -> list[list[str]]:
    """The most probable label of every text or word, in the order of the examples; `task.unreached` if unseen."""
    model.to(device).eval()  # type: ignore[arg-type]
    by_length = sorted(range(len(encoded.input_ids)), key=lambda row: len(encoded.input_ids[row]))
    predicted: list[list[str]] = [[] for _ in by_length]
    for start in range(0, len(by_length), batch_size):
        rows = by_length[start : start + batch_size]
        best = model(**inputs_of(encoded, rows, pad_id(model), device)).logits.argmax(-1).cpu()  # [B] or [B, L]
        for i, row in enumerate(rows):
            numbers = best[i] if task.tagging else best[i, None]  # by token, or one alone
            predicted[row] = [
                task.unreached if position == UNSEEN else task.labels[int(numbers[position])]
                for position in encoded.positions[row]
            ]
    return predicted


def pad_id(model: PreTrainedModel) -> int:
    config: Any = model.config
    return int(config.pad_token_id or 0)
