"""Stage 1a: text → token rows, vocabulary and a sealed recipe. One process, on the CPU, in bounded memory.

All files are written to a hidden folder beside the cache, which gets the cache's name once it is sealed. So the rows,
masks and vocabulary of an existing cache are final; the next build removes the folder of a killed `prepare`.
"""

import hashlib
import os
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from cache_tools.anatomy import why_no_start
from cache_tools.build.checks import (
    check_accuracy,
    check_against_teacher,
    check_tokenizer,
    check_unknown_tokens,
    report_texts,
)
from cache_tools.build.resolve import BuildInputs
from cache_tools.build.start import StartShape, choose_start, compute_start, start_rows
from cache_tools.components import principal_components
from cache_tools.errors import CometError
from cache_tools.interrupts import stop_on_signal
from cache_tools.models import choose_device
from cache_tools.progress import show_progress
from cache_tools.settings import AUTO, BuildSettings, parse_layers
from cache_tools.store.layout import group_arrays, widest_embedding
from cache_tools.store.ledger import TOKENIZER, TOKENIZER_FILES
from cache_tools.store.provenance import describe_exclusion
from cache_tools.store.recipe import GROUPS, Recipe
from cache_tools.store.records import sync_folder
from cache_tools.store.staging import claimed_folder, remove_abandoned
from cache_tools.store.writer import seal, write_token_shard
from cache_tools.teacher.continuation import continued_rows
from cache_tools.teacher.device import choose_batch_size, choose_dtype
from cache_tools.teacher.identity import identity
from cache_tools.teacher.model import Teacher
from cache_tools.text.corpus import (
    PackedRows,
    Spool,
    keys_sha256,
    masked_shard,
    pack_groups,
    rows_sha256,
    spool_documents,
    token_counts,
)
from cache_tools.text.exclusion import NGRAM_WORDS
from cache_tools.text.languages import find_language
from cache_tools.text.masking import Masking, max_targets
from cache_tools.text.packing import validation_share

EMBEDDING_WIDTH = 256


def prepare_once(inputs: BuildInputs, teacher: Teacher, tokenizer: PreTrainedTokenizerFast) -> None:
    """Prepare the sealed cache `--out` unless it exists.

    Raises CometError as `prepare` does, and if the disk refuses; KeyboardInterrupt at SIGINT and SIGTERM, which leave
    no files.
    """
    out = inputs.settings.out
    try:
        with stop_on_signal(None, "stopped while preparing the text; nothing is kept, run the same command again"):
            remove_abandoned(out.parent, preparing_prefix(out))
            if not out.exists():
                prepare(inputs, out, teacher, tokenizer)
    except OSError as error:
        raise CometError(
            f"{out}: cannot be created ({error.strerror or error}); make room or choose another --out, then run the "
            "same command again"
        ) from error


def prepare(inputs: BuildInputs, out: Path, teacher: Teacher, tokenizer: PreTrainedTokenizerFast) -> None:
    """Create the sealed cache `out`, with tokens and without any of the teacher's signals.

    Raises CometError if the text cannot be read or has no token, or the teacher does not allow the settings.
    """
    settings = inputs.settings
    check_against_teacher(settings, teacher, tokenizer)
    start_shape = choose_start(settings, teacher)
    if settings.start_layers == AUTO and (reason := why_no_start(teacher.model)) is not None:
        tqdm.write(f"no start: students of this cache begin with a random body, since {reason}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with claimed_folder(out.parent, preparing_prefix(out)) as work:
        root = work / "cache"
        root.mkdir()
        save_cache_tokenizer(tokenizer, root / TOKENIZER)
        check_tokenizer(root / TOKENIZER, len(teacher.head.weight))
        spool = spool_documents(inputs.texts, inputs.excluded, tokenizer, work, settings.token_limit)
        check_unknown_tokens(settings.teacher, spool, tokenizer)
        report_texts(inputs.texts, spool, settings.token_limit)
        provenance = _make_provenance(inputs, spool, int(spool.counts[tokenizer.unk_token_id]))
        if inputs.excluded:
            tqdm.write(f"left out {describe_exclusion(provenance)}")
        views = settings.views_of(spool.total)
        if settings.continue_views > views == 1:
            raise CometError(
                f"--continue-views {settings.continue_views}: a text of {spool.total:,} tokens has one view, which "
                "continues none; give --views 2 or more, or omit --continue-views",
                exit_code=2,
            )
        share = validation_share(settings.mask_prob * views * spool.total)
        text_rows = pack_groups(spool, share, settings.seq_len, tokenizer, work)
        if settings.views is None and views > 1:
            tqdm.write(f"{views} masked views of each row, since the text has only {spool.total:,} tokens (--views)")
        special = tuple(sorted(tokenizer.all_special_ids))
        text_counts = _without(special, spool.counts)
        masking = Masking(settings.mask_prob, settings.seed, tokenizer.mask_token_id, special, _ids_of(text_counts))
        device = choose_device(settings.device)
        rows, counts = text_rows, text_counts
        if settings.continue_views > 1:
            drawn = _without(special, np.bincount([*tokenizer.get_vocab().values()]))
            path, chain = work / "continued.bin", settings.continue_views
            train = continued_rows(teacher, text_rows["train"], masking, _ids_of(drawn), views, chain, device, path)
            rows = text_rows | {"train": train}
            counts = _without(special, np.sum([token_counts(one, len(spool.counts)) for one in rows.values()], 0))
            masking = replace(masking, seen=_ids_of(counts))
        recipe = _make_recipe(settings, teacher, tokenizer, text_rows, rows, masking, views, start_shape)
        digests = {group: _write_rows(root, recipe, group, rows[group], masking) for group in GROUPS}
        read_tokens = partial(masked_shard, rows["train"], masking, recipe, "train")
        first = masked_shard(text_rows["train"], masking, recipe, "train", 0)
        check_accuracy(settings, teacher, device, first, text_counts, masking.mask_id)
        attributes: dict[str, object] = {
            "recipe": asdict(recipe),
            "recipe_id": recipe.recipe_id,
            "provenance": provenance,
            "settings": _run_settings(settings, teacher),
        }
        vocabulary = _vocabulary(teacher, counts, recipe)
        start = compute_start(teacher, recipe, read_tokens, vocabulary["id"], vocabulary["count"], device)
        seal(root, recipe, attributes, vocabulary, start, digests)
        publish(root, out)


def publish(root: Path, out: Path) -> None:
    """Rename a sealed cache to its final name, once all of it is on disk. Raises CometError if the disk refuses."""
    for folder in (*root.rglob("*/"), root):
        sync_folder(folder)
    try:
        os.rename(root, out)
    except OSError as error:
        if not out.exists():
            raise CometError(f"{out}: cannot be created ({error.strerror})") from error
        # another process sealed the cache first: it is as good, and the caller checks its recipe
    sync_folder(out.parent)


def preparing_prefix(out: Path) -> str:
    """Return the prefix of the folders that a cache is prepared in."""
    return f".{out.name}.preparing-"


def _without(special: tuple[int, ...], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return `counts` [V] by id, with 0 for the special ids."""
    return np.where(np.isin(np.arange(len(counts)), special), 0, counts)


def _ids_of(counts: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the ids that occur, ascending."""
    return np.flatnonzero(counts).astype(np.int32)


def _make_recipe(
    settings: BuildSettings,
    teacher: Teacher,
    tokenizer: PreTrainedTokenizerFast,
    text_rows: dict[str, PackedRows],
    rows: dict[str, PackedRows],
    masking: Masking,
    views: int,
    start: StartShape,
) -> Recipe:
    """Return the recipe. `text_rows` are the rows of one view of the text, `rows` the same or the continued ones."""
    config = teacher.model.config
    train_rows = len(text_rows["train"].length) * views
    return Recipe(
        **identity(teacher, tokenizer),
        tokens_sha256=rows_sha256(text_rows),
        seen_sha256=hashlib.sha256(masking.seen.astype("<i4").tobytes()).hexdigest(),
        seen_size=len(masking.seen),
        embedding_width=min(EMBEDDING_WIDTH, teacher.input_embedding.shape[1], widest_embedding(len(masking.seen))),
        train_rows=train_rows,
        validation_rows=len(text_rows["validation"].length) * views,
        seq_len=settings.seq_len,
        max_targets=max_targets(settings.seq_len, settings.mask_prob),
        views=views,
        continued_views=settings.continue_views,
        continued_sha256="" if rows is text_rows else keys_sha256(rows["train"]),
        mask_prob=settings.mask_prob,
        seed=settings.seed,
        keep=settings.keep,
        top_k=settings.top_k,
        temperatures=settings.temperatures,
        attention_layers=parse_layers(settings.attention_layers, config.num_hidden_layers),
        attention_queries=settings.attention_queries,
        attention_keys=settings.keys_kept,
        rows_per_shard=settings.rows_per_shard,
        start_layers=start.layers,
        start_width=start.width,
        start_neurons=start.neurons,
        start_positions=start.positions,
        start_local_layers=start.local_layers,
        start_window=start.window,
        start_rope=start.rope,
        start_rows=start_rows(train_rows, settings.seq_len) if start.layers else 0,
    )


def _write_rows(root: Path, recipe: Recipe, group: str, rows: PackedRows, masking: Masking) -> tuple[str, ...]:
    """Mask the rows of all views, view 0 first, and write their token shards. Return the digest of each shard."""
    specs = group_arrays(recipe, group)
    shards = show_progress(range(recipe.shards(group)), f"mask {group}", "shard")
    return tuple(
        write_token_shard(root, specs, shard, masked_shard(rows, masking, recipe, group, shard)) for shard in shards
    )


def _vocabulary(teacher: Teacher, counts: NDArray[np.int64], recipe: Recipe) -> dict[str, NDArray]:
    """Return the vocabulary arrays of the ids that occur, by the `counts` of all; see `store.reader.Vocabulary`."""
    ids = _ids_of(counts)
    seen, count = torch.from_numpy(ids.astype(np.int64)), counts[ids]
    embedding = teacher.input_embedding.detach()[seen]
    return {
        "id": ids,
        "count": count,
        "embedding": principal_components(embedding, torch.from_numpy(count), recipe.embedding_width).numpy(),
        "head_bias": teacher.head.bias.detach().float()[seen].numpy(),
    }


def save_cache_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the two files of a tokenizer that a cache keeps. Raises OSError if they cannot be written."""
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # the library raises a bare Exception if the disk refuses
        raise OSError(str(error)) from error
    for path in folder.iterdir():
        if path.name not in TOKENIZER_FILES:
            path.unlink()


def _make_provenance(inputs: BuildInputs, spool: Spool, unknown: int) -> dict[str, object]:
    """Return the origin of the cache, beside the recipe: names only, no folder, time or host."""
    settings = inputs.settings
    language = find_language(settings.language)
    return {
        "language": language.code,
        "language_name": language.name,
        **inputs.teacher_provenance(),
        "text": [
            record | {"tokens": tokens}
            for record, tokens in zip(inputs.text_provenance(), spool.source_tokens, strict=True)
        ],
        "text_tokens": spool.total,
        "unknown_tokens": unknown,
        "documents": spool.document_count,
        "max_tokens": settings.token_limit,
        "excluded": inputs.excluded_records,
        "excluded_documents": spool.excluded,
        "excluded_run_words": NGRAM_WORDS,
    }


def _run_settings(settings: BuildSettings, teacher: Teacher) -> dict[str, object]:
    """Return dtype and batch size, chosen once, so that every worker and every resumed run computes alike."""
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "batch_size": settings.batch_size or choose_batch_size(teacher, settings.seq_len, device, dtype),
    }
