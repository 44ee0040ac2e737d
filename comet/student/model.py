"""The student: its shapes, and how it starts from what the cache holds of the teacher."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM, XLMRobertaModel

from cache_tools.errors import CometError
from cache_tools.store.reader import Cache, Vocabulary
from cache_tools.text.tokenizer import load_tokenizer
from comet.student.vocabulary import StudentVocabulary, student_tokenizer

AT_LEAST_SMALLER = 0.85
EMBEDDING_STD = 0.1
POSITIONS = 514


@dataclass(frozen=True)
class StudentShape:
    """An XLM-R body: `layers` of width `hidden` with `heads` heads and a feed-forward of `intermediate`."""

    name: str
    layers: int
    hidden: int
    heads: int
    intermediate: int

    def __str__(self) -> str:
        return f"{self.name} ({self.layers} layers × {self.hidden}, {self.heads} heads, FFN {self.intermediate})"


COMET = StudentShape("comet", 6, 256, 8, 1024)  # the paper's
PRESETS = (
    COMET,
    StudentShape("small", 6, 128, 4, 512),
    StudentShape("tiny", 4, 64, 4, 256),
    StudentShape("nano", 3, 48, 4, 192),
)
"""From large to small. `auto` takes the first that is small enough."""


def choose_shape(requested: str, cache: Cache, vocab_size: int) -> StudentShape:
    """A preset by name, a shape from a JSON config file, or with `auto` the largest preset at least 85 % smaller than
    the teacher, the smallest if none is.

    Raises CometError when `requested` is neither a preset nor a readable config.
    """
    by_name = {shape.name: shape for shape in PRESETS}
    if requested in by_name:
        return by_name[requested]
    if requested == "auto":
        limit = (1 - AT_LEAST_SMALLER) * cache.recipe.teacher_parameters
        return next((s for s in PRESETS if count_parameters(s, vocab_size) <= limit), PRESETS[-1])
    path = Path(requested)
    if not path.is_file():
        raise CometError(
            f"--student {requested}: expected auto, {', '.join(by_name)}, or a JSON file with num_hidden_layers, "
            "hidden_size, num_attention_heads and intermediate_size",
            exit_code=2,
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
        layers, hidden, heads, intermediate = (int(config[name]) for name in names)
    except (ValueError, KeyError, TypeError) as error:
        raise CometError(
            f"--student {requested}: not a student config ({type(error).__name__}: {error})", exit_code=2
        ) from None
    if min(layers, hidden, heads, intermediate) < 1 or hidden % heads:
        raise CometError(f"--student {requested}: {hidden} is not a multiple of {heads} heads", exit_code=2)
    return StudentShape(path.stem, layers, hidden, heads, intermediate)


def student_config(shape: StudentShape, vocab_size: int, dropout: float = 0.0) -> XLMRobertaConfig:
    return XLMRobertaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        max_position_embeddings=POSITIONS,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        tie_word_embeddings=True,
    )


def count_parameters(shape: StudentShape, vocab_size: int) -> int:
    """Parameters as the paper counts them: the body with its pooler, without the masked-LM head."""
    with torch.device("meta"):
        return sum(p.numel() for p in XLMRobertaModel(student_config(shape, vocab_size)).parameters())


def new_student(
    shape: StudentShape,
    caches: Sequence[Cache],
    vocabulary: StudentVocabulary,
    dropout: float,
    seed: int,
    from_cache: bool = True,
) -> XLMRobertaForMaskedLM:
    """A student that starts from the teacher's embeddings and the word frequencies in the caches, or at random."""
    recipe = caches[0].recipe
    config = student_config(shape, len(vocabulary), dropout)
    special = vocabulary.student_id[[recipe.pad_id, recipe.bos_id, recipe.eos_id]].tolist()
    config.pad_token_id, config.bos_token_id, config.eos_token_id = special
    config.max_position_embeddings = max(POSITIONS, recipe.seq_len + special[0] + 1)
    torch.manual_seed(seed)
    student = XLMRobertaForMaskedLM(config)
    if from_cache:
        start_from_cache(student, [cache.vocabulary for cache in caches], vocabulary, recipe.special_ids)
    return student


@torch.no_grad()
def start_from_cache(
    student: XLMRobertaForMaskedLM,
    vocabularies: Sequence[Vocabulary],
    known: StudentVocabulary,
    special_ids: tuple[int, ...],
) -> None:
    """Embeddings from the teacher's leading components, head bias from word frequencies, head transform the identity.

    The identity lets the teacher's geometry of words reach the predictions from the first step on. The bias is the
    log of the add-one-smoothed frequency, so that the first predictions are those of a unigram model. Ids that never
    occur start at the mean, which is zero; special tokens keep their random start.
    """
    weight: Tensor = student.get_input_embeddings().weight  # type: ignore[assignment]
    hidden = weight.shape[1]
    special = known.student_id[list(special_ids)]
    keep = weight[special].clone()
    weight.zero_()
    counts = 1.0 + torch.from_numpy(token_counts(vocabularies, known))
    for vocabulary in reversed(vocabularies):  # where an id is in several caches, the first cache decides
        ids = known.student_id[torch.from_numpy(vocabulary.id.astype(np.int64))]
        width = min(hidden, vocabulary.embedding.shape[1])
        components = torch.from_numpy(vocabulary.embedding[:, :width].astype(np.float32))
        components *= EMBEDDING_STD / components.square().mean().sqrt().clamp(min=1e-12)
        weight[ids, :width] = components
    weight[special] = keep
    student.lm_head.bias.copy_((counts / counts.sum()).log())
    student.lm_head.dense.weight.copy_(torch.eye(hidden))


def token_counts(vocabularies: Sequence[Vocabulary], known: StudentVocabulary) -> NDArray[np.int64]:
    """[V'] how often each of the student's tokens occurs in all corpora."""
    counts = np.zeros(known.teacher_size, dtype=np.int64)
    for vocabulary in vocabularies:
        counts[vocabulary.id] += vocabulary.count
    return counts[known.teacher_id]


def earlier_student(
    folder: Path, caches: Sequence[Cache], vocabulary: StudentVocabulary, dropout: float
) -> XLMRobertaForMaskedLM:
    """A student that an earlier training left, to go on with.

    Raises CometError unless it is an XLM-R masked LM with exactly this vocabulary and room for these rows.
    """
    if not folder.is_dir():
        raise CometError(
            f"--init {folder}: expected cache, random, or the folder of a student; it is none", exit_code=2
        )
    try:
        student: XLMRobertaForMaskedLM = XLMRobertaForMaskedLM.from_pretrained(
            folder, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, local_files_only=True
        )
        pieces = load_tokenizer(folder).get_vocab()
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CometError(
            f"--init {folder}: expected cache, random, or the folder of a student ({reason})", exit_code=2
        ) from error
    recipe = caches[0].recipe
    expected = student_tokenizer(caches[0], vocabulary).get_vocab()
    if unlike := [piece for piece in sorted(pieces | expected) if pieces.get(piece) != expected.get(piece)]:
        raise CometError(
            f"--init {folder}: its vocabulary of {len(pieces):,} pieces is not that of this training "
            f"({len(vocabulary):,}): {len(unlike):,} pieces differ, the first {unlike[0]!r} with id "
            f"{pieces.get(unlike[0])} against {expected.get(unlike[0])}; "
            "give the --vocabulary it was trained with, and a cache of the same teacher",
            exit_code=2,
        )
    positions = student.config.max_position_embeddings - int(vocabulary.student_id[recipe.pad_id]) - 1
    if recipe.seq_len > positions:
        raise CometError(
            f"--init {folder}: reads {positions} tokens, the rows of the cache have {recipe.seq_len}",
            exit_code=2,
        )
    return student.float()


def shape_of(student: XLMRobertaForMaskedLM, name: str) -> StudentShape:
    c = student.config
    return StudentShape(name, c.num_hidden_layers, c.hidden_size, c.num_attention_heads, c.intermediate_size)
