"""Checks of teacher, tokenizer and text, made before hours are spent on a build."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from cache_tools.attention import AttentionCapture
from cache_tools.errors import CometError, first_line, visible
from cache_tools.models import max_positions
from cache_tools.places.foreign import named
from cache_tools.settings import BuildSettings, parse_layers
from cache_tools.signals import UNUSED_POSITION
from cache_tools.store.ledger import TOKENIZER_FILES, max_tokenizer_bytes
from cache_tools.store.records import read_bounded
from cache_tools.store.tokenizer import parse_tokenizer, parse_tokenizer_config
from cache_tools.teacher.model import Teacher
from cache_tools.text.corpus import Spool
from cache_tools.text.files.text_file import TextFile
from cache_tools.text.hub_text import HubText
from cache_tools.text.tokenizer import vocabulary_size

NO_ATTENTION = "--attention-layers none"
MANY_REPEATED = 0.25  # of all documents
MANY_UNKNOWN, MOST_UNKNOWN = 0.01, 0.5  # of all tokens
SHORTEST = 2  # tokens of the shortest row that the teacher is tried with
TOLERANCE = 1e-3  # relative to the largest feature, in float32
TOKENS_TRIED, ROWS_AT_ONCE = 4096, 8
HARDLY_BETTER = 2.0  # times a unigram model's accuracy
FEWEST_JUDGED = 100  # masked tokens: by fewer a teacher is not refused


def check_against_teacher(settings: BuildSettings, teacher: Teacher, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise CometError if the teacher does not allow the settings."""
    config, vocab_size = teacher.model.config, len(teacher.head.weight)
    if (most := vocabulary_size(tokenizer)) > vocab_size:
        raise CometError(
            f"teacher {settings.teacher}: its tokenizer has ids for {most} tokens, but its head only {vocab_size}; "
            "tokenizer and model do not belong together"
        )
    for name, module in teacher.model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) not in (
            None,
            tokenizer.pad_token_id,
        ):
            raise CometError(
                f"teacher {settings.teacher}: its positions begin after the padding id {module.padding_idx}, but the "
                f"padding id of its tokenizer is {tokenizer.pad_token_id}; tokenizer and model do not belong together"
            )
    positions = max_positions(config)
    if settings.seq_len > positions:
        raise CometError(f"--seq-len {settings.seq_len}: this teacher reads at most {positions} tokens", exit_code=2)
    if settings.top_k > vocab_size:
        raise CometError(f"--top-k {settings.top_k}: this teacher has {vocab_size} tokens", exit_code=2)
    layers = parse_layers(settings.attention_layers, config.num_hidden_layers)
    if layers and teacher.why_no_attention is not None:
        raise CometError(
            f"teacher {settings.teacher}: {teacher.why_no_attention}; build with {NO_ATTENTION}", exit_code=2
        )
    _try_teacher(settings, teacher, tokenizer, layers)


def _try_teacher(
    settings: BuildSettings, teacher: Teacher, tokenizer: PreTrainedTokenizerFast, layers: tuple[int, ...]
) -> None:
    """Raise CometError if the teacher cannot read the shortest and the longest row, with the attention of these layers,
    or reads a row differently when it is padded."""
    where, kind = f"teacher {settings.teacher}", type(teacher.model).__name__
    lengths = torch.tensor([settings.seq_len, SHORTEST])
    mask = torch.arange(settings.seq_len) < lengths[:, None]  # [2, L]
    ids = torch.where(mask, tokenizer.mask_token_id, tokenizer.pad_token_id)
    try:
        both = _features(teacher, ids, mask, layers)  # [2, L, H]
        longest = _features(teacher, ids[:1], mask[:1], layers)  # [1, L, H]
        shortest = _features(teacher, ids[1:, :SHORTEST], mask[1:, :SHORTEST], layers)
    except CometError as error:
        raise CometError(f"{where}: {error}", exit_code=2) from error
    except Exception as error:  # whatever a model does that is not like those we know
        raise CometError(
            f"{where}: {kind} cannot read rows of {SHORTEST} and {settings.seq_len} tokens ({first_line(error)}); try "
            f"a smaller --seq-len{f', {NO_ATTENTION}' if layers else ''}, or another teacher",
            exit_code=2,
        ) from error
    if not both.isfinite().all() or both.shape[-1] != teacher.head.weight.shape[1]:
        raise CometError(f"{where}: {kind} gives features that its head cannot read, or that are not finite")
    for alone, padded in ((longest[0], both[0]), (shortest[0], both[1, :SHORTEST])):
        if not (alone - padded).abs().max() <= TOLERANCE * alone.abs().max():
            raise CometError(
                f"{where}: {kind} reads a row differently beside another, or with padding behind it, so its outputs "
                "would depend on the batch; choose another teacher",
                exit_code=2,
            )


@torch.no_grad()
def _features(teacher: Teacher, ids: Tensor, mask: Tensor, layers: tuple[int, ...]) -> Tensor:
    """Return the features [B, L, H] of rows, ids [B, L], as a build computes them, once attention was captured."""
    capture = AttentionCapture(layers, torch.zeros(len(ids), len(layers), 1, dtype=torch.int64))
    features = teacher.transform(teacher.hidden_states(ids, mask, capture))
    if layers:
        capture.rows()
    return features


def check_unknown_tokens(teacher: str, spool: Spool, tokenizer: PreTrainedTokenizerFast) -> None:
    """Print the share of unknown tokens in the text if it is large. Raises CometError from one half on."""
    share = spool.counts[tokenizer.unk_token_id] / spool.total
    said = f"{share:.1%} of the tokens of this text are unknown to the tokenizer of {teacher}"
    if share >= MOST_UNKNOWN:
        raise CometError(
            f"--text: {said}, so a student could not read them either; use a teacher that was trained on this language "
            "and script",
            exit_code=2,
        )
    if share >= MANY_UNKNOWN:
        tqdm.write(f"{said}: no student will know them either; was the teacher trained on this script?")


@torch.no_grad()
def check_accuracy(
    settings: BuildSettings,
    teacher: Teacher,
    device: torch.device,
    rows: dict[str, NDArray],
    counts: NDArray,
    mask_id: int,
) -> None:
    """Print how many masked tokens the teacher predicts in the first of these rows of a shard, and a unigram model.

    `counts` [V] are the occurrences of each token of the corpus, 0 of special ones. The teacher reads the rows on
    `device`, and is on the CPU before and after. Raises CometError if it is no better than always saying the most
    frequent token, unless `weak_teacher` is set.
    """
    reading = teacher.to(device, torch.float32)
    right = frequent = tried = 0
    for first in range(0, min(-(-TOKENS_TRIED // settings.seq_len), len(rows["length"])), ROWS_AT_ONCE):
        ids, length, position, label = (
            torch.from_numpy(rows[name][first : first + ROWS_AT_ONCE].astype(np.int64))
            for name in ("input_ids", "length", "target_position", "target_id")
        )
        row, slot = torch.nonzero(position != UNUSED_POSITION, as_tuple=True)
        masked = ids[row, position[row, slot]] == mask_id  # other targets are shown, or shown as other tokens
        row, slot = row[masked], slot[masked]
        mask = torch.arange(ids.shape[1]) < length[:, None]
        hidden = reading.hidden_states(ids.to(device), mask.to(device), None)
        logits = reading.head.logits(reading.transform(hidden[row, position[row, slot]]))  # [T, V]
        truth = label[row, slot]
        right += int((logits.argmax(1).cpu() == truth).sum())
        frequent += int((truth == int(counts.argmax())).sum())
        tried += len(truth)
    teacher.to(torch.device("cpu"), torch.float32)
    if not tried:
        return
    said = (
        f"the teacher predicts {right / tried:.1%} of {tried:,} masked tokens of this text; its most frequent "
        f"token alone would be right for {frequent / tried:.1%}"
    )
    if right > frequent or settings.weak_teacher or tried < FEWEST_JUDGED:
        doubt = "; that is hardly better: was the teacher trained on this language?"
        tqdm.write(said + (doubt if right < HARDLY_BETTER * frequent else ""))
        return
    raise CometError(
        f"teacher {settings.teacher}: {said}: it was not trained to fill masks, or not on this language, or its "
        "weights or tokenizer are not those it was trained with; choose another teacher, or give --weak-teacher to "
        "build anyway",
        exit_code=2,
    )


def report_texts(texts: Sequence[TextFile | HubText], spool: Spool, limit: int | None) -> None:
    """Print which texts gave no tokens, and how many documents are repeated if there are many."""
    if unread := [text.name for text, tokens in zip(texts, spool.source_tokens, strict=True) if not tokens]:
        if limit is not None and spool.total >= limit:
            why = f"{limit:,} tokens were reached before (--max-tokens)"
        elif spool.excluded:
            why = "there is no text in it, or --exclude left it out"
        else:
            why = "there is no text in it"
        tqdm.write(visible(f"--text: no token comes from {named(unread)}: {why}"))
    if spool.repeated >= MANY_REPEATED * spool.document_count:
        tqdm.write(
            f"{spool.repeated:,} of {spool.document_count:,} documents repeat another word for word: is a text given "
            "twice, plain and compressed?"
        )


def check_tokenizer(folder: Path, vocab_size: int) -> None:
    """Raise CometError for a tokenizer that readers of the cache would refuse."""
    tokens, config = (read_bounded(folder / name, max_tokenizer_bytes(vocab_size)) for name in TOKENIZER_FILES)
    try:
        parse_tokenizer(tokens, vocab_size, TOKENIZER_FILES[0])
        parse_tokenizer_config(config, TOKENIZER_FILES[1])
    except CometError as error:
        raise CometError(f"the teacher's tokenizer cannot go into a cache: {error}") from error
