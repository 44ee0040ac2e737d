"""The student at its first step: from the layers in a cache, its embeddings, at random, or from an earlier student."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel

from cache_tools.errors import CometError, first_line
from cache_tools.models import max_positions
from cache_tools.places.foreign import named
from cache_tools.store.reader import Cache
from cache_tools.text.tokenizer import load_tokenizer
from comet.student.family import StudentShape, family_of, output_layer, word_embeddings
from comet.student.shape import count_parameters
from comet.student.start import begin_with_start, joined_caches, start_cache, start_layers, start_settings
from comet.student.vocabulary import StudentVocabulary, student_tokenizer

EMBEDDING_STD = 0.1


def new_student(
    shape: StudentShape,
    caches: Sequence[Cache],
    vocabulary: StudentVocabulary,
    dropout: float,
    seed: int,
    init: str = "cache",
) -> PreTrainedModel:
    """Return a student of its teacher's family. `init` is start: from the teacher's layers in the caches; cache: from
    its embeddings and the frequencies of tokens; or random.

    Raises CometError if there is no start, the shape does not fit it, or the weights do not fit in memory.
    """
    recipe = caches[0].recipe
    family = family_of(recipe)
    _require_memory(shape, 4 * count_parameters(shape, len(vocabulary), family))
    special = {name: int(vocabulary.student_id[getattr(recipe, name)]) for name in ("pad_id", "bos_id", "eos_id")}
    others = start_settings(shape, caches) if init == "start" else {}
    config = family.config(shape, len(vocabulary), dropout, special, recipe.seq_len, others)
    torch.manual_seed(seed)
    student = family.model(config)
    if init == "start":
        begin_with_start(student, shape, caches, vocabulary)
    elif init == "cache":
        _begin_with_embeddings(student, caches, vocabulary)
    else:
        _silence_unscored(student, caches, vocabulary)
    return student


def begins_with(init: str, shape: StudentShape, caches: Sequence[Cache]) -> str:
    """Describe the initial weights of a student."""
    cache = start_cache(caches)
    if init == "start" and cache is not None:
        recipe = cache.recipe
        layers = ", ".join(str(recipe.start_layers[index]) for index in start_layers(recipe, shape.layers))
        width = "at its own width" if shape.hidden == recipe.teacher_hidden else f"cut to width {shape.hidden}"
        if len(joined := joined_caches(shape, caches)) > 1:
            width += f" in the components of the texts of {', '.join(Path(one.name).name for one in joined)} together"
        without = [Path(other.name).name for other in caches if not other.recipe.start_layers]
        mean = f"; tokens found only in {', '.join(without)}, without a start, begin at the mean" if without else ""
        return f"layers {layers} of the teacher's 0–{recipe.teacher_layers - 1}, {width}{mean}"
    known = {"cache": "the teacher's embeddings and a random body", "random": "random weights"}
    return known.get(init, f"the student in {Path(init).name}")


def _require_memory(shape: StudentShape, needed: int) -> None:
    """Raise CometError unless `needed` bytes of weights fit in memory: a recipe from elsewhere may ask for any size."""
    if needed > (free := psutil.virtual_memory().available):
        raise CometError(
            f"--student {shape}: its weights take {needed / 1e9:,.1f} GB of memory, of which {free / 1e9:,.1f} are "
            "free; use a smaller --student",
            exit_code=2,
        )


@torch.no_grad()
def _begin_with_embeddings(student: PreTrainedModel, caches: Sequence[Cache], vocabulary: StudentVocabulary) -> None:
    """Set the embeddings to the teacher's leading components, the head bias to token frequencies, and the head's
    transform to the identity.

    The identity lets the teacher's geometry of tokens reach the predictions from the first step on. The bias is the
    log of the add-one-smoothed frequency, so that the first predictions are those of a unigram model. Ids that never
    occur start at the mean, which is zero; special tokens keep their random start.
    """
    weight = word_embeddings(student)
    hidden = weight.shape[1]
    special = vocabulary.student_id[list(caches[0].recipe.special_ids)]
    keep = weight[special].clone()
    weight.zero_()
    cached = [cache.vocabulary for cache in caches]
    counts = 1.0 + torch.from_numpy(token_counts(caches, vocabulary))
    for found in reversed(cached):  # the first cache with an id decides
        ids = vocabulary.student_id[torch.from_numpy(found.id.astype(np.int64))]
        width = min(hidden, found.embedding.shape[1])
        components = torch.from_numpy(found.embedding[:, :width].astype(np.float32))
        components *= EMBEDDING_STD / components.square().mean().sqrt().clamp(min=1e-12)
        weight[ids, :width] = components
    weight[special] = keep
    output_layer(student).bias.copy_((counts / counts.sum()).log())
    family_of(caches[0].recipe).head_dense(student).weight.copy_(torch.eye(hidden))


@torch.no_grad()
def _silence_unscored(student: PreTrainedModel, caches: Sequence[Cache], vocabulary: StudentVocabulary) -> None:
    """Make tokens that no corpus scores as improbable as one that occurs once in all of them: no training lowers them,
    and those that spell other text would keep a quarter of a student's mass."""
    occurrences = int(sum(cache.vocabulary.count.sum() for cache in caches))
    output_layer(student).bias[vocabulary.unscored.all(0)] = -math.log(occurrences)


def token_counts(caches: Sequence[Cache], vocabulary: StudentVocabulary) -> NDArray[np.int64]:
    """Return how often each of the student's tokens [V'] occurs in the corpora of all caches, each text once."""
    counts = np.zeros(vocabulary.teacher_size, dtype=np.int64)
    for found in {cache.recipe.tokens_sha256: cache.vocabulary for cache in caches}.values():
        counts[found.id] += found.count
    return counts[vocabulary.teacher_id]


def earlier_student(
    folder: Path, caches: Sequence[Cache], vocabulary: StudentVocabulary, dropout: float
) -> PreTrainedModel:
    """Load the student of an earlier training.

    Raises CometError unless it is a masked LM of the caches' family, with exactly this vocabulary and enough positions
    for these rows.
    """
    recipe = caches[0].recipe
    family = family_of(recipe)
    expected = f"--init {folder}: expected start, cache, random, or the folder of a student"
    if not os.path.isdir(folder):  # unlike Path.is_dir, also False for a name that no disk takes
        raise CometError(f"{expected}; there is no such folder", exit_code=2)
    try:
        found = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).model_type
        if found != family.model_type:
            raise CometError(
                f"--init {folder}: expected a student of the family {family.name} ({family.model_type}), as all "
                f"students of {recipe.teacher_architecture} are, found {found}; give a student of these caches' "
                "teacher, or --init cache",
                exit_code=2,
            )
        student: PreTrainedModel
        student, loaded = family.model_class.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, **family.dropout(dropout)
        )
        tokens = load_tokenizer(folder).get_vocab()
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CometError(f"{expected} ({first_line(error)})", exit_code=2) from error
    if missing := sorted(loaded["missing_keys"]):
        raise CometError(
            f"--init {folder}: its weights lack {named(missing)}, which would be random numbers; give the folder of a "
            "masked LM, such as comet-train writes",
            exit_code=2,
        )
    wanted = student_tokenizer(caches[0], vocabulary).get_vocab()
    if unlike := [token for token in sorted(tokens | wanted) if tokens.get(token) != wanted.get(token)]:
        raise CometError(
            f"--init {folder}: its vocabulary of {len(tokens):,} tokens is not that of this training "
            f"({len(vocabulary):,}): {len(unlike):,} tokens differ, the first {unlike[0]!r} with id "
            f"{tokens.get(unlike[0])} against {wanted.get(unlike[0])}; "
            "give the --vocabulary it was trained with, and a cache of the same teacher",
            exit_code=2,
        )
    positions = max_positions(student.config)
    if recipe.seq_len > positions:
        raise CometError(
            f"--init {folder}: this student reads {positions} tokens, but a row of the cache has {recipe.seq_len}; use "
            "another student, or a cache of shorter rows",
            exit_code=2,
        )
    return student.float()


def shape_of(student: PreTrainedModel, name: str) -> StudentShape:
    """Return the shape of a student under this name."""
    c = student.config
    return StudentShape(name, c.num_hidden_layers, c.hidden_size, c.num_attention_heads, c.intermediate_size)
