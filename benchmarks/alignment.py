"""Measure what tagging loses if words are tokenised one by one: MasakhaNER F1 of one model with ByteLevel tokens.

Words are found by their characters, as comet-eval does, or by `is_split_into_words`, as it did until commit a4070ed.

The model is made here: a small RoBERTa and its tokenizer, trained on text of the language that no task's set holds.

    python benchmarks/alignment.py --shared ../shared
"""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from quality_measures import CPU, training_lines
from tokenizers import ByteLevelBPETokenizer, processors
from tqdm import trange
from train_sample_teacher import BOS, EOS, MASK_PROB_TRAIN, SPECIAL, encode, mask, packed_batches, target_logits
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM, set_seed

from comet.evaluate import finetuning
from comet.evaluate.datasets import Example, TaskData, load_task
from comet.evaluate.finetuning import UNSEEN, Encoded, FineTuning, default_learning_rate, fine_tune, load_for_task
from comet.evaluate.tasks import Task, find_task

VOCAB_SIZE, LAYERS, HIDDEN, HEADS = 8000, 4, 192, 6
LEARNING_RATE, WARMUP = 1e-3, 0.05
EPOCHS, BATCH = 3, 16


def write_model(lines: Sequence[str], steps: int, folder: Path) -> None:
    """Train tokenizer and model, and write them as a transformers folder."""
    pieces = ByteLevelBPETokenizer()
    pieces.train_from_iterator(lines, VOCAB_SIZE - 1, special_tokens=SPECIAL, show_progress=False)
    pieces.add_special_tokens(["<mask>"])
    pieces._tokenizer.post_processor = processors.RobertaProcessing(("</s>", EOS), ("<s>", BOS))
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces._tokenizer, **names, cls_token="<s>", sep_token="</s>", mask_token="<mask>"
    )
    set_seed(0)
    model: Any = RobertaForMaskedLM(
        RobertaConfig(
            vocab_size=VOCAB_SIZE, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            intermediate_size=4 * HIDDEN, max_position_embeddings=514, type_vocab_size=1,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=WARMUP)
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    documents = encode(tokenizer, list(lines))
    batches: list[torch.Tensor] = []
    for _ in trange(steps, desc="model"):
        batches = batches or packed_batches(documents, rng)
        rows = batches.pop()
        inputs, target = mask(rows, MASK_PROB_TRAIN, VOCAB_SIZE - 1, generator)
        torch.nn.functional.cross_entropy(target_logits(model, inputs, target), rows[target]).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def encode_by_words(tokenizer: Any, examples: Sequence[Example], task: Task, max_length: int) -> Encoded:
    """As `finetuning.encode`, but with the words of a sentence tokenised one by one."""
    words = [example.parts for example in examples]
    batch = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_length)
    positions = []
    for encoding, parts in zip(batch.encodings, words, strict=True):
        first = [UNSEEN] * len(parts)
        for position, word in reversed(list(enumerate(encoding.word_ids))):
            if word is not None:
                first[word] = position
        positions.append(first)
    inputs = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in batch["input_ids"]]
    return replace(finetuning.encode(tokenizer, examples, task, max_length), inputs=inputs, positions=positions)


def score(folder: Path, encoded: Callable[..., Encoded], data: TaskData, seed: int) -> float:
    task = data.task
    model, tokenizer = load_for_task(str(folder), task, seed)
    train, reported = (
        encoded(tokenizer, split.examples, task, task.max_length) for split in (data.train, data.reported)
    )
    how = FineTuning(EPOCHS, BATCH, default_learning_rate(model.config.hidden_size, tagging=True))
    fine_tune(model, train, task, how, seed, CPU, encoded.__name__)
    return task.score(reported.labels, finetuning.predict(model, reported, task, 32, CPU))


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--shared", type=click.Path(exists=True, path_type=Path), required=True, help="The shared data.")
@click.option("--folder", type=click.Path(path_type=Path), default="alignment", show_default=True, help="The model.")
@click.option("--language", default="swa", show_default=True)
@click.option("--steps", default=1500, show_default=True, help="Of the model's training, 2,048 tokens each.")
@click.option("--seeds", default=2, show_default=True, help="Of fine-tuning.")
@click.option("--threads", default=1, show_default=True)
def main(shared: Path, folder: Path, language: str, steps: int, seeds: int, threads: int) -> None:
    torch.set_num_threads(threads)
    if not folder.exists():
        write_model(training_lines(shared, language).split("\n"), steps, folder)
    data = load_task(find_task("masakhaner"), language, shared / "data" / "masakhaner")
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        for way in (finetuning.encode, encode_by_words):
            found.setdefault(way.__name__, []).append(score(folder, way, data, seed))
            print(json.dumps(found), flush=True)
    by_characters, by_words = (statistics.mean(values) for values in found.values())
    print(f"{language}: F1 {by_words:.3f} by words, {by_characters:.3f} by characters")


if __name__ == "__main__":
    main()
