"""The student: its shapes, and how it starts from what the cache holds of the teacher."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaModel,
)

from cache_tools.errors import CometError
from cache_tools.store.reader import Cache, Vocabulary

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


def choose_shape(requested: str, cache: Cache) -> StudentShape:
    """A preset by name, a shape from a JSON config file, or with `auto` the largest preset at least 85 % smaller than
    the teacher, the smallest if none is.

    Raises CometError when `requested` is neither a preset nor a readable config.
    """
    by_name = {shape.name: shape for shape in PRESETS}
    if requested in by_name:
        return by_name[requested]
    if requested == "auto":
        limit = (1 - AT_LEAST_SMALLER) * cache.recipe.teacher_parameters
        return next((s for s in PRESETS if count_parameters(s, cache.recipe.vocab_size) <= limit), PRESETS[-1])
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


def new_student(shape: StudentShape, caches: list[Cache], dropout: float, seed: int) -> XLMRobertaForMaskedLM:
    """A student that starts from what the first cache holds of the teacher's embeddings and word frequencies."""
    recipe = caches[0].recipe
    config = student_config(shape, recipe.vocab_size, dropout)
    config.pad_token_id, config.bos_token_id, config.eos_token_id = recipe.pad_id, recipe.bos_id, recipe.eos_id
    config.max_position_embeddings = max(POSITIONS, recipe.seq_len + recipe.pad_id + 1)
    torch.manual_seed(seed)
    student = XLMRobertaForMaskedLM(config)
    start_from_cache(student, [cache.vocabulary for cache in caches], recipe.special_ids)
    return student


@torch.no_grad()
def start_from_cache(
    student: XLMRobertaForMaskedLM, vocabularies: list[Vocabulary], special_ids: tuple[int, ...]
) -> None:
    """Embeddings from the teacher's leading components, head bias from word frequencies, head transform the identity.

    The identity lets the teacher's geometry of words reach the predictions from the first step on. The bias is the
    log of the add-one-smoothed frequency, so that the first predictions are those of a unigram model. Ids that never
    occur start at the mean, which is zero; special tokens keep their random start.
    """
    weight: Tensor = student.get_input_embeddings().weight  # type: ignore[assignment]
    vocab_size, hidden = weight.shape
    special = list(special_ids)
    keep = weight[special].clone()
    weight.zero_()
    counts = np.zeros(vocab_size, dtype=np.int64)
    for vocabulary in reversed(vocabularies):  # where an id is in several caches, the first cache decides
        counts[vocabulary.id] += vocabulary.count
        width = min(hidden, vocabulary.embedding.shape[1])
        components = torch.from_numpy(vocabulary.embedding[:, :width].astype(np.float32))
        components *= EMBEDDING_STD / components.square().mean().sqrt().clamp(min=1e-12)
        weight[torch.from_numpy(vocabulary.id.astype(np.int64)), :width] = components
    weight[special] = keep
    frequency = torch.from_numpy(counts + 1.0)
    student.lm_head.bias.copy_((frequency / frequency.sum()).log())
    student.lm_head.dense.weight.copy_(torch.eye(hidden))


def load_cached_tokenizer(cache: Cache) -> PreTrainedTokenizerBase:
    """The teacher's tokenizer, from the cache itself."""
    return AutoTokenizer.from_pretrained(cache.tokenizer_folder, trust_remote_code=False, local_files_only=True)
