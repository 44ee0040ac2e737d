"""Fine-tune a masked LM on a task with one seed, and predict with it.

The number of epochs is fixed: choosing one by its score would select on the split that is reported.
"""

import math
import tempfile
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from tokenizers import Encoding
from tqdm import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from cache_tools.errors import CometError
from cache_tools.models import is_out_of_memory, loading_errors
from cache_tools.progress import show_progress
from cache_tools.store.recipe import TEXT_FORM
from cache_tools.text.hub import MODEL, model_folder
from cache_tools.text.model_tokenizer import load_model_tokenizer
from cache_tools.text.tokenizer import vocabulary_size
from comet.evaluate.datasets import Example
from comet.evaluate.tasks import Task

IGNORED = -100  # the label of a token that carries no loss
UNSEEN = -1  # the position of a word without a token
# at 1e-3 students 40 and 96 wide predict one label of AfriSenti everywhere, but tag MasakhaNER better than at 5e-4
LARGEST_TEXT_RATE, LARGEST_TAGGING_RATE = 5e-4, 1e-3


@dataclass(frozen=True)
class Encoded:
    """Examples as inputs of one model; every list has one entry per example.

    `inputs` hold input_ids and attention_mask, at most the chosen length, for `collate` to pad. `positions` are those
    of the tokens that carry the labels: 0 for a text, the first token of each word of a sentence, UNSEEN for a word
    without a token or beyond that length.
    """

    inputs: list[dict[str, list[int]]]
    positions: list[list[int]]
    labels: list[tuple[str, ...]]
    truncated: int  # number of examples cut
    collate: DataCollatorWithPadding | DataCollatorForTokenClassification

    @property
    def unseen(self) -> int:
        """Number of words that are not in the inputs; they count as not recognised."""
        return sum(row.count(UNSEEN) for row in self.positions)


@dataclass(frozen=True)
class FineTuning:
    """Hyperparameters: AdamW, the learning rate rising linearly over a tenth of the steps, then falling to 0."""

    epochs: int
    batch_size: int
    learning_rate: float


def default_learning_rate(hidden: int, tagging: bool) -> float:
    """Return 2e-5, the field's choice at hidden size 1024, × (1024 / hidden)² for narrower models, up to 1e-3 for
    tagging words and 5e-4 for classifying texts."""
    return min(2e-5 * (1024 / hidden) ** 2, LARGEST_TAGGING_RATE if tagging else LARGEST_TEXT_RATE)


def model_files(name: str) -> Path:
    """Return the folder of a model's files. Raises CometError as `model_folder` does."""
    note = " (no such folder here)" if MODEL.fullmatch(name) else ""
    return model_folder(name, f"--model {name}{note}", "give --model FOLDER")


def load_for_task(name: str, task: Task, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a masked LM from a folder or the hub with a new head, drawn from the seed; on the CPU in float32.

    Never runs code of the model. Returns model and tokenizer.
    Raises CometError if it cannot be loaded, parts of its body are missing, its tokenizer has more tokens than the
    model, or it already has a task's head.
    """
    folder = model_files(name)
    head: Any = AutoModelForTokenClassification if task.tagging else AutoModelForSequenceClassification
    torch.manual_seed(seed)
    expected = "a masked LM with config.json, model.safetensors and tokenizer.json"
    with loading_errors(f"--model {name}:", expected, exit_code=2):
        tokenizer = load_model_tokenizer(folder, f"--model {name}")
        tokenizer.padding_side = "right"  # positions and the token of a text's label count from the left
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
    if (most := vocabulary_size(tokenizer)) > (embedded := len(model.get_input_embeddings().weight)):
        raise CometError(
            f"--model {name}: its tokenizer has ids for {most} tokens, but the model embeds only {embedded}; tokenizer "
            "and model do not belong together",
            exit_code=2,
        )
    if all(key.startswith(body) for key in new):
        raise CometError(
            f"--model {name}: has been fine-tuned for a task already; expected a masked LM, such as comet-train writes",
            exit_code=2,
        )
    return model, tokenizer


def encode(tokenizer: Any, examples: Sequence[Example], task: Task, max_length: int) -> Encoded:
    """Tokenise examples in form NFC, as caches are, cut to `max_length` tokens with the special tokens kept, and locate
    their labels.

    The words of a sentence are joined by spaces: one by one, many tokenizers would see them without the mark of a
    beginning word that they had in pre-training (https://github.com/huggingface/transformers/issues/38564).
    """
    parts = [[unicodedata.normalize(TEXT_FORM, part) for part in example.parts] for example in examples]
    batch = tokenizer([" ".join(words) for words in parts], truncation=True, max_length=max_length)
    positions = [[0]] * len(examples)
    if task.tagging:
        positions = [first_tokens(tokens, words) for tokens, words in zip(batch.encodings, parts, strict=True)]
    return Encoded(
        inputs=[{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in batch["input_ids"]],
        positions=positions,
        labels=[example.labels for example in examples],
        truncated=sum(bool(encoding.overflowing) for encoding in batch.encodings),
        collate=(DataCollatorForTokenClassification if task.tagging else DataCollatorWithPadding)(tokenizer),
    )


def first_tokens(encoding: Encoding, words: Sequence[str]) -> list[int]:
    """Return the position of each word's first token in a text of these words, joined by spaces; UNSEEN for a word
    without one.

    A token belongs to the word that it begins in, one that begins with the space before a word to that word.
    """
    ends = list(accumulate(len(word) + 1 for word in words))  # each after the space that follows the word
    found = [UNSEEN] * len(words)
    tokens = enumerate(zip(encoding.offsets, encoding.special_tokens_mask, strict=True))
    for position, ((start, _), special) in reversed(list(tokens)):
        word = bisect_right(ends, start + 1)  # a space, at ends[word] - 1, belongs to the word after it
        if not special and word < len(words):
            found[word] = position
    return found


def training_items(encoded: Encoded, task: Task) -> list[dict[str, Any]]:
    """Return the inputs with `labels`: one number for a text, for a sentence one per token, IGNORED between labels."""
    number = {label: i for i, label in enumerate(task.labels)}
    items: list[dict[str, Any]] = []
    for inputs, positions, labels in zip(encoded.inputs, encoded.positions, encoded.labels, strict=True):
        numbers = dict(zip(positions, map(number.get, labels), strict=True))
        tokens = range(len(inputs["input_ids"]))
        items.append({**inputs, "labels": [numbers.get(i, IGNORED) for i in tokens] if task.tagging else numbers[0]})
    return items


class Progress(TrainerCallback):
    """Advance the bar of a run at every step; raise CometError at a loss that is not finite."""

    def __init__(self, run: str, bar: tqdm) -> None:
        self.run, self.bar = run, bar

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not math.isfinite(loss := logs.get("loss", 0.0)):
            raise CometError(
                f"{self.run}: the loss is {loss} at step {state.global_step} of {state.max_steps}; "
                f"give a --learning-rate below {args.learning_rate:g}"
            )
        self.bar.total = state.max_steps
        self.bar.update(state.global_step - self.bar.n)


def fine_tune(
    model: PreTrainedModel, encoded: Encoded, task: Task, how: FineTuning, seed: int, device: torch.device, name: str
) -> None:
    """Train body and head on all examples; the same seed gives the same weights, to the bit on one kind of CPU.

    Raises CometError if the loss is not finite, or memory runs out.
    """
    items: Any = training_items(encoded, task)
    run = f"{name}, seed {seed}"
    with (
        tempfile.TemporaryDirectory() as folder,  # Trainer insists on one; nothing is written to it
        show_progress(what=run, unit="step", total=math.inf, leave=False) as bar,  # until Progress knows the number
    ):
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=how.epochs,
            per_device_train_batch_size=how.batch_size,
            learning_rate=how.learning_rate,
            warmup_steps=0.1,  # a share
            weight_decay=0.01,
            max_grad_norm=1.0,
            seed=seed,
            use_cpu=device.type == "cpu",
            dataloader_pin_memory=device.type == "cuda",
            train_sampling_strategy="group_by_length",  # most of a batch of short and long sentences is padding
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # several would multiply the batch size
        trainer = Trainer(
            model, arguments, train_dataset=items, data_collator=encoded.collate, callbacks=[Progress(run, bar)]
        )
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise CometError(
                f"{run}: out of memory with batches of {how.batch_size} on {device.type}; give a smaller --batch-size"
            ) from error
    model.eval()


@torch.no_grad()
def predict(
    model: PreTrainedModel, encoded: Encoded, task: Task, batch_size: int, device: torch.device
) -> list[list[str]]:
    """Return the most probable label of every text or word, example by example; `task.unreached` for unseen words."""
    model.to(device).eval()  # type: ignore[arg-type]
    by_length = sorted(range(len(encoded.inputs)), key=lambda row: len(encoded.inputs[row]["input_ids"]))
    predicted: list[list[str]] = [[] for _ in by_length]
    for start in range(0, len(by_length), batch_size):
        rows = by_length[start : start + batch_size]
        batch: Any = encoded.collate([encoded.inputs[row] for row in rows])
        best = model(**batch.to(device)).logits.argmax(-1).reshape(len(rows), -1).tolist()  # [B, 1] or [B, L]
        for row, numbers in zip(rows, best, strict=True):
            predicted[row] = [
                task.unreached if position == UNSEEN else task.labels[numbers[position]]
                for position in encoded.positions[row]
            ]
    return predicted
