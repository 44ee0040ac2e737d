"""Train the small Kinyarwanda teacher that `comet-cache build --sample` uses.

Reads only the openly licensed lines (CC0 and CC BY 4.0), holds one line in fifty out by a hash of its text,
learns a Unigram tokenizer and a small XLM-R on the rest, and writes a transformers folder with a model card
whose figures come from the held-out lines. A step is 2,048 tokens; the first half of training sees single
lines of similar length, the second half packed rows of 128 tokens.

    python benchmarks/train_sample_teacher.py --text kin.txt.xz --open-lines lines.json.xz --output DIR
"""

import hashlib
import json
import lzma
import math
import time
from pathlib import Path

import click
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaForMaskedLM, set_seed

BOS, PAD, EOS, UNK = 0, 1, 2, 3
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
STEP_TOKENS = 2048
ROW = 128
MASK_PROB_TRAIN, MASK_PROB_EVAL = 0.20, 0.15


def open_lines(text: Path, ranges: Path, lang: str) -> tuple[list[str], list[str]]:
    """The openly licensed lines of `text`, split into (training, held out) by a hash of each line."""
    lines = lzma.decompress(text.read_bytes()).decode().split("\n")
    allowed = json.loads(lzma.decompress(ranges.read_bytes()))[lang]
    train: list[str] = []
    held_out: list[str] = []
    for first, last in allowed:
        for line in lines[first : last + 1]:
            bucket = hashlib.sha256(line.encode()).digest()[0] % 50
            (held_out if bucket == 0 else train).append(line)
    return train, held_out


def train_tokenizer(lines: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A Unigram tokenizer with XLM-R's special tokens: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, `<mask>` last."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("’", "'")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size - 1, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_special_tokens(["<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        cls_token="<s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
        model_max_length=512,
    )


def encode(tokenizer: PreTrainedTokenizerFast, lines: list[str]) -> list[np.ndarray]:
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(lines, add_special_tokens=False)
    return [np.array(e.ids, dtype=np.int64) for e in encodings if e.ids]


def pack(documents: list[np.ndarray]) -> torch.Tensor:
    """All documents, shuffled by the caller, as full rows `<s> doc </s> doc …`, [rows, ROW]."""
    stream = np.concatenate([np.append(d, EOS) for d in documents])
    rows = stream[: len(stream) // (ROW - 1) * (ROW - 1)].reshape(-1, ROW - 1)
    return torch.from_numpy(np.insert(rows, 0, BOS, axis=1))


def line_batches(documents: list[np.ndarray], rng: np.random.Generator) -> list[torch.Tensor]:
    """One epoch of single lines, grouped by length, `STEP_TOKENS` tokens a batch, in random order."""
    order = np.argsort([len(d) + rng.random() for d in documents])
    batches: list[torch.Tensor] = []
    pending: list[np.ndarray] = []
    for index in order:
        row = documents[index][: ROW - 2]
        pending.append(np.concatenate([[BOS], row, [EOS]]))
        if len(pending) * len(pending[-1]) >= STEP_TOKENS:
            width = len(pending[-1])
            padded = [np.pad(p, (0, width - len(p)), constant_values=PAD) for p in pending]
            batches.append(torch.from_numpy(np.stack(padded)))
            pending = []
    return [batches[i] for i in rng.permutation(len(batches))]


def packed_batches(documents: list[np.ndarray], rng: np.random.Generator) -> list[torch.Tensor]:
    """One epoch of packed rows in random order, `STEP_TOKENS` tokens a batch."""
    rows = pack([documents[i] for i in rng.permutation(len(documents))])
    rows = rows[torch.from_numpy(rng.permutation(len(rows)))]
    return list(rows.split(STEP_TOKENS // ROW))


def mask(
    rows: torch.Tensor, prob: float, mask_id: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """BERT masking (80 % mask, 10 % random, 10 % kept). Returns inputs and the boolean targets, both [B, L]."""
    ordinary = rows > UNK
    target = (torch.rand(rows.shape, generator=generator) < prob) & ordinary
    action = torch.rand(rows.shape, generator=generator)
    random_ids = torch.randint(UNK + 1, mask_id, rows.shape, generator=generator)
    inputs = torch.where(target & (action < 0.8), mask_id, rows)
    inputs = torch.where(target & (action >= 0.9), random_ids, inputs)
    return inputs, target


def target_logits(model: XLMRobertaForMaskedLM, inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Logits at the targets only, [targets, V]."""
    hidden = model.roberta(inputs, attention_mask=inputs != PAD).last_hidden_state
    return model.lm_head(hidden[target])


def ppmi_embeddings(documents: list[np.ndarray], counts: np.ndarray, width: int, std: float) -> torch.Tensor:
    """Truncated SVD of the positive PMI of token pairs within four positions, [V, width], scaled to `std`."""
    vocab_size = len(counts)
    stream = np.concatenate([np.append(d, -1) for d in documents])
    pairs = np.zeros(vocab_size * vocab_size, dtype=np.float32)
    for offset in range(1, 5):
        left, right = stream[:-offset], stream[offset:]
        inside = (left >= 0) & (right >= 0)
        pairs += np.bincount(left[inside] * vocab_size + right[inside], minlength=vocab_size**2).astype(np.float32)
    joint = torch.from_numpy(pairs.reshape(vocab_size, vocab_size))
    joint = joint + joint.T
    marginal = joint.sum(1).clamp(min=1.0)
    pmi = torch.log(joint * joint.sum() / (marginal[:, None] * marginal[None, :])).clamp(min=0.0)
    left_vectors, singular, _ = torch.svd_lowrank(pmi, q=width + 32, niter=4)
    vectors = left_vectors[:, :width] * singular[:width].sqrt()
    return vectors * (std / vectors.std())


@torch.no_grad()
def evaluate(
    model: XLMRobertaForMaskedLM, rows: torch.Tensor, mask_id: int, log_unigram: torch.Tensor
) -> dict[str, float]:
    """Masked-token loss (nats) and accuracy of the model and of the unigram model on held-out packed rows."""
    generator = torch.Generator().manual_seed(1)
    totals = np.zeros(5)
    for batch in rows.split(64):
        inputs, target = mask(batch, MASK_PROB_EVAL, mask_id, generator)
        truth = batch[target]
        log_probs = target_logits(model, inputs, target).float().log_softmax(-1)
        totals += [
            len(truth),
            -log_probs.gather(1, truth[:, None]).sum().item(),
            (log_probs.argmax(-1) == truth).sum().item(),
            -log_unigram[truth].sum().item(),
            (truth == log_unigram.argmax()).sum().item(),
        ]
    targets, loss, right, unigram_loss, unigram_right = totals.tolist()
    return {
        "targets": int(targets),
        "loss": round(loss / targets, 4),
        "accuracy": round(right / targets, 4),
        "unigram_loss": round(unigram_loss / targets, 4),
        "unigram_accuracy": round(unigram_right / targets, 4),
    }


MODEL_CARD = """---
language: rw
license: cc-by-4.0
library_name: transformers
pipeline_tag: fill-mask
---
# A sample teacher for Kinyarwanda

Made so that the first run of this project works offline. It is a smoke test, not a language resource: use a real
teacher such as AfroXLMR-large for real work.

- XLM-R architecture: {layers} layers, hidden {hidden}, {heads} heads, vocabulary {vocab_size:,} (Unigram),
  {parameters:,} parameters, float16.
- Trained by `benchmarks/train_sample_teacher.py`: {steps:,} steps of 2,048 tokens over {lines:,} lines.
- Text: openly licensed Kinyarwanda lines only. Sentences of Mozilla Common Voice (CC0 1.0,
  <https://github.com/mozilla/common-voice>) and tweets of AfriSenti (CC BY 4.0,
  <https://github.com/afrisenti-semeval/afrisent-semeval-2023>; Muhammad et al., 2023).
  The text itself is not part of this folder.

Held-out lines of the same sources (one in fifty, by a hash; they resemble the training lines), {targets:,} targets,
15 % of the tokens: 80 % of them masked, 10 % replaced, 10 % left as they are:

| | loss (nats) | accuracy |
|---|---|---|
| unigram model | {unigram_loss:.3f} | {unigram_accuracy:.1%} |
| this model | {loss:.3f} | {accuracy:.1%} |
"""


@click.command(help=__doc__.split("\n")[0])
@click.option("--text", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--open-lines", "open_lines_path", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--steps", default=20_000, show_default=True)
@click.option("--layers", default=4, show_default=True)
@click.option("--hidden", default=192, show_default=True)
@click.option("--heads", default=6, show_default=True)
@click.option("--vocab-size", default=8000, show_default=True)
@click.option("--learning-rate", default=1e-3, show_default=True)
def main(
    text: Path,
    open_lines_path: Path,
    output: Path,
    steps: int,
    layers: int,
    hidden: int,
    heads: int,
    vocab_size: int,
    learning_rate: float,
) -> None:
    set_seed(0)
    rng = np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    train_lines, held_out_lines = open_lines(text, open_lines_path, "kin")
    tokenizer = train_tokenizer(train_lines, vocab_size)
    mask_id = tokenizer.mask_token_id
    train, held_out = encode(tokenizer, train_lines), encode(tokenizer, held_out_lines)
    counts = np.bincount(np.concatenate(train), minlength=vocab_size)
    log_unigram = torch.from_numpy(np.log((counts + 1) / (counts + 1).sum())).float()
    print(f"{len(train):,} training lines, {counts.sum():,} tokens; {len(held_out):,} lines held out")

    config = XLMRobertaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=514,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-5,
    )
    model = XLMRobertaForMaskedLM(config)
    with torch.no_grad():
        model.roberta.embeddings.word_embeddings.weight.copy_(ppmi_embeddings(train, counts, hidden, std=0.05))
        model.lm_head.bias.copy_(log_unigram)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    warmup = 200
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min((s + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * s / steps)),
    )
    held_out_rows = pack(held_out)
    started, step, smoothed = time.monotonic(), 0, float("nan")
    progress = tqdm(total=steps, mininterval=10)
    while step < steps:
        batches = line_batches(train, rng) if step < steps // 2 else packed_batches(train, rng)
        for rows in batches[: steps - step]:
            inputs, target = mask(rows, MASK_PROB_TRAIN, mask_id, generator)
            with torch.autocast("cpu", torch.bfloat16):
                logits = target_logits(model, inputs, target)
            loss = torch.nn.functional.cross_entropy(logits.float(), rows[target])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            smoothed = loss.item() if math.isnan(smoothed) else 0.99 * smoothed + 0.01 * loss.item()
            progress.update()
            progress.set_postfix(loss=f"{smoothed:.3f}", refresh=False)
            if step % 2000 == 0:
                progress.write(f"step {step}: {evaluate(model, held_out_rows[:200], mask_id, log_unigram)}")
    progress.close()

    model = model.half()
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    (output / "model.safetensors").chmod(0o644)
    reloaded = XLMRobertaForMaskedLM.from_pretrained(output, dtype=torch.float32)
    scores = evaluate(reloaded, held_out_rows, mask_id, log_unigram)
    scores |= {"steps": steps, "minutes": round((time.monotonic() - started) / 60, 1)}
    parameters = sum(p.numel() for p in reloaded.parameters())
    card = MODEL_CARD.format(
        layers=layers, hidden=hidden, heads=heads, vocab_size=vocab_size, parameters=parameters,
        lines=len(train), **scores,
    )  # fmt: skip
    (output / "README.md").write_text(card, encoding="utf-8")
    print(json.dumps(scores, indent=1))


if __name__ == "__main__":
    main()
