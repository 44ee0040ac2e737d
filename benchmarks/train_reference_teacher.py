"""Train a teacher worth distilling on the shared text of all five languages, for quality.py and fidelity.py.

XLM-R architecture, 12 layers × 512 by default, a Unigram vocabulary of its own; one line in fifty of every language is
held out by a hash of its text. Resumable: run the same command again. Its text is partly non-commercial or of unstated
licence, so the weights stay out of the project. Meant for a GPU; runs anywhere.

    python benchmarks/train_reference_teacher.py --shared ../shared --output reference-teacher
"""

import hashlib
import json
import lzma
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
from tqdm import tqdm
from train_sample_teacher import (
    MASK_PROB_TRAIN,
    encode,
    evaluate,
    line_batches,
    mask,
    pack,
    packed_batches,
    ppmi_embeddings,
    target_logits,
    train_tokenizer,
)
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaForMaskedLM, set_seed

LANGUAGES = ("kin", "swa", "hau", "ibo", "yor")
WARMUP = 500
SAVE_SECONDS = 120.0


def read_language(shared: Path, language: str, most: int | None) -> tuple[list[str], list[str]]:
    """(training, held-out) lines, at most so many of both together."""
    lines = lzma.decompress((shared / f"data/text/{language}.txt.xz").read_bytes()).decode().split("\n")[:most]
    held_out = [hashlib.sha256(line.encode()).digest()[0] % 50 == 0 for line in lines]
    return (
        [line for line, out in zip(lines, held_out, strict=True) if not out],
        [line for line, out in zip(lines, held_out, strict=True) if out],
    )


def epochs(documents: list[np.ndarray], steps: int) -> Iterator[torch.Tensor]:
    """All batches of the training in order, a pure function of its arguments: single lines, then packed rows."""
    step = 0
    for epoch in range(steps):
        rng = np.random.default_rng(epoch)
        batches = line_batches(documents, rng) if step < steps // 2 else packed_batches(documents, rng)
        yield from batches[: steps - step]
        step += len(batches)
        if step >= steps:
            return


def save(state: dict[str, object], path: Path) -> None:
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def new_model(
    tokenizer: PreTrainedTokenizerFast, documents: list[np.ndarray], layers: int, hidden: int, heads: int
) -> tuple[XLMRobertaForMaskedLM, torch.Tensor]:
    """A model that starts from word associations and frequencies, and the log of these frequencies [V]."""
    vocab_size = len(tokenizer)
    counts = np.bincount(np.concatenate(documents), minlength=vocab_size)
    log_unigram = torch.from_numpy(np.log((counts + 1) / (counts + 1).sum())).float()
    config = XLMRobertaConfig(
        vocab_size=vocab_size, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * hidden, max_position_embeddings=514, type_vocab_size=1, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, layer_norm_eps=1e-5,
    )  # fmt: skip
    model = XLMRobertaForMaskedLM(config)
    with torch.no_grad():
        model.roberta.embeddings.word_embeddings.weight.copy_(ppmi_embeddings(documents, counts, hidden, std=0.05))
        model.lm_head.bias.copy_(log_unigram)
    return model, log_unigram


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--shared", type=click.Path(exists=True, path_type=Path), required=True, help="The shared data.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder, to continue in.")
@click.option("--steps", default=40_000, show_default=True, help="Of 2,048 tokens each.")
@click.option("--layers", default=12, show_default=True)
@click.option("--hidden", default=512, show_default=True)
@click.option("--heads", default=8, show_default=True)
@click.option("--vocab-size", default=24_000, show_default=True)
@click.option("--learning-rate", default=5e-4, show_default=True)
@click.option("--lines", type=int, help="Read only so many of each language.")
def main(
    shared: Path,
    output: Path,
    steps: int,
    layers: int,
    hidden: int,
    heads: int,
    vocab_size: int,
    learning_rate: float,
    lines: int | None,
) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    set_seed(0)
    output.mkdir(parents=True, exist_ok=True)
    texts = {language: read_language(shared, language, lines) for language in LANGUAGES}
    every = [line for train, _ in texts.values() for line in train]
    tokens = output / "tokenizer"
    if not tokens.exists():
        train_tokenizer(every, vocab_size).save_pretrained(tokens)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokens)
    mask_id = int(tokenizer.mask_token_id)
    documents = encode(tokenizer, every)
    model, log_unigram = new_model(tokenizer, documents, layers, hidden, heads)
    model.to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / WARMUP, 0.5 + 0.5 * math.cos(math.pi * s / steps))
    )
    done, checkpoint = 0, output / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        done = state["done"]
    saved = time.monotonic()
    for step, rows in enumerate(tqdm(epochs(documents, steps), total=steps, mininterval=10)):
        if step < done:
            continue
        inputs, target = mask(rows, MASK_PROB_TRAIN, mask_id, torch.Generator().manual_seed(step))
        inputs, target, rows = inputs.to(device), target.to(device), rows.to(device)
        with torch.autocast(device.type, torch.bfloat16):
            logits = target_logits(model, inputs, target)
        torch.nn.functional.cross_entropy(logits.float(), rows[target]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if time.monotonic() - saved > SAVE_SECONDS or step + 1 == steps:
            states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save(states | {"schedule": schedule.state_dict(), "done": step + 1}, checkpoint)
            saved = time.monotonic()

    model = model.cpu().half()
    model.save_pretrained(output / "teacher")
    tokenizer.save_pretrained(output / "teacher")
    reloaded = XLMRobertaForMaskedLM.from_pretrained(output / "teacher", dtype=torch.float32).eval()
    scores = {
        language: evaluate(reloaded, pack(encode(tokenizer, held_out)), mask_id, log_unigram)
        for language, (_, held_out) in texts.items()
    }
    (output / "scores.json").write_text(json.dumps(scores, indent=1))
    for language, score in scores.items():
        print(
            f"{language}: loss {score['loss']:.3f} nats (unigram {score['unigram_loss']:.3f}), "
            f"accuracy {score['accuracy']:.1%} (unigram {score['unigram_accuracy']:.1%})"
        )


if __name__ == "__main__":
    main()
