"""Students of a cache's start, and their distance to the teacher on its validation rows."""

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cache_tools import Cache
from comet.student.family import StudentShape
from comet.student.model import new_student
from comet.student.vocabulary import StudentVocabulary, full_vocabulary


def full_shape(cache: Cache) -> StudentShape:
    recipe = cache.recipe
    return StudentShape(
        "full", len(recipe.start_layers), recipe.start_width, recipe.teacher_heads, recipe.start_neurons
    )


def student_of(
    cache: Cache, shape: StudentShape, vocabulary: StudentVocabulary | None = None, init: str = "start"
) -> PreTrainedModel:
    student = new_student(shape, [cache], vocabulary or full_vocabulary(cache.recipe), 0.0, 0, init).eval()
    student.set_attn_implementation("eager")
    return student


def rows_of(cache: Cache, number: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """(ids [B, L], mask [B, L], targets [B, L]) of validation rows."""
    arrays = cache.read_shard("validation", 0)
    ids = torch.from_numpy(arrays["input_ids"][:number].astype(np.int64))
    mask = torch.arange(ids.shape[1]) < torch.from_numpy(arrays["length"][:number].astype(np.int64))[:, None]
    targets = torch.zeros_like(mask)
    for row, positions in enumerate(arrays["target_position"][:number]):
        targets[row, positions[positions != 65535].astype(np.int64)] = True
    return ids, mask, targets


@torch.no_grad()
def logits_of(model: PreTrainedModel, cache: Cache, vocabulary: StudentVocabulary | None = None) -> Tensor:
    """The logits [T, V_seen] at the targets, of the tokens of the corpus."""
    ids, mask, targets = rows_of(cache)
    seen = torch.from_numpy(cache.vocabulary.id.astype(np.int64))
    if vocabulary is not None:
        ids, seen = vocabulary.student_id[ids], vocabulary.student_id[seen]
    return model(ids, attention_mask=mask.long()).logits[targets][:, seen].double()


def divergence(teacher: Tensor, student: Tensor) -> float:
    """The mean KL of logits [T, V]."""
    p, q = teacher.log_softmax(-1), student.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())
