"""The vocabulary of a student: all of the teacher's tokens, or those of the corpus.

A trimmed vocabulary keeps the ids that occur in the corpus (V_seen), the special tokens, and what its tokenizer needs
to read text of kept tokens as before, and no text that the teacher could read as unknown.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cache_tools.errors import CometError
from cache_tools.store.reader import Cache
from cache_tools.store.recipe import TEXT_FORM, Recipe
from cache_tools.text.tokenizer import build_tokenizer, load_tokenizer, read_settings, read_tokenizer_file
from comet.student.trimming import TRIMMED_EXACTLY, required_ids, trimmed_state

COMPOSING = (TEXT_FORM, "NFKC")


@dataclass(frozen=True)
class StudentVocabulary:
    """The student's tokens as ids of the teacher.

    `teacher_id` [V'] int64, ascending: the teacher's id of each student id. `scored` [C, V] bool: of each of C corpora,
    the teacher's ids that a trimmed student is scored for, its V_seen; None if the vocabulary is full.
    """

    teacher_id: NDArray[np.int64]
    teacher_size: int
    scored: NDArray[np.bool_] | None = None

    @property
    def trimmed(self) -> bool:
        return self.scored is not None

    def __len__(self) -> int:
        return len(self.teacher_id)

    @cached_property
    def student_id(self) -> Tensor:
        """The student's id of each teacher id, −1 for tokens it lacks; [V] int64."""
        ids = torch.full((self.teacher_size,), -1, dtype=torch.int64)
        ids[torch.from_numpy(self.teacher_id)] = torch.arange(len(self))
        return ids

    @cached_property
    def scored_id(self) -> Tensor:
        """As `student_id`, for each corpus, but −1 also for tokens that it lacks; [C, V]."""
        if self.scored is None:
            return self.student_id[None]
        return self.student_id.where(torch.from_numpy(self.scored), -1)

    @cached_property
    def unscored(self) -> Tensor:
        """The student's tokens that are not scored in a corpus, since it lacks them; [C, V'] bool."""
        return self.scored_id[:, torch.from_numpy(self.teacher_id)] < 0

    def scored_ids(self, ids: Tensor, corpus: Tensor | None = None) -> Tensor:
        """Return the student's ids of the teacher's `ids` [T, …], −1 for those that the target's corpus lacks.

        `corpus` [T] int64 is that of each target. Raises ValueError if there are several and it is None.
        """
        if len(self.scored_id) == 1:
            return self.scored_id[0][ids]
        if corpus is None:
            raise ValueError(f"{len(self.scored_id)} corpora: expected that of each target")
        return self.scored_id[corpus.view(-1, *[1] * (ids.dim() - 1)), ids]


def full_vocabulary(recipe: Recipe) -> StudentVocabulary:
    """Return the vocabulary of a student with all of the teacher's tokens."""
    return StudentVocabulary(np.arange(recipe.vocab_size), recipe.vocab_size)


def trimmed_vocabulary(caches: Sequence[Cache]) -> StudentVocabulary:
    """Return V_seen of all caches with the special tokens and those of `required_ids`.

    Raises CometError if `why_not_trimmed`.
    """
    if (reason := why_not_trimmed(caches)) is not None:
        raise CometError(f"--vocabulary trimmed: {reason}", exit_code=2)
    recipe = caches[0].recipe
    scored = np.zeros((len(caches), recipe.vocab_size), dtype=bool)
    for corpus, cache in enumerate(caches):
        scored[corpus, cache.vocabulary.id] = True
    kept = np.union1d(np.flatnonzero(scored.any(0)), recipe.special_ids).astype(np.int64)
    kept = np.union1d(kept, required_ids(read_tokenizer(caches[0])["model"], kept.tolist())).astype(np.int64)
    return StudentVocabulary(kept, recipe.vocab_size, scored)


def read_tokenizer(cache: Cache) -> dict[str, Any]:
    """Return the parsed tokenizer.json of a cache. Raises CometError as `parse_tokenizer` does."""
    return read_tokenizer_file(cache.tokenizer_folder, cache.recipe.vocab_size)[1]


def why_not_trimmed(caches: Sequence[Cache]) -> str | None:
    """Return why the vocabulary of these caches cannot be trimmed exactly, None if it can."""
    kind = read_tokenizer(caches[0])["model"]["type"]
    if kind not in TRIMMED_EXACTLY:
        return (
            f"expected a {', '.join(TRIMMED_EXACTLY[:-1])} or {TRIMMED_EXACTLY[-1]} tokenizer, found {kind}, of which "
            "it is not known how it reads with fewer tokens; use --vocabulary full"
        )
    return None


def student_tokenizer(cache: Cache, vocabulary: StudentVocabulary) -> PreTrainedTokenizerBase:
    """Return an ordinary fast tokenizer for these ids that cuts texts at the length of the cache's rows: positions
    beyond are never trained. Raises CometError if a special token would not get its id."""
    folder, recipe = cache.tokenizer_folder, cache.recipe
    whole = load_tokenizer(folder, recipe.vocab_size)
    expected = {"pad_token": recipe.pad_id, "mask_token": recipe.mask_id, "cls_token": recipe.bos_id}
    for role, expected_id in (expected | {"sep_token": recipe.eos_id}).items():
        if (found := whole.convert_tokens_to_ids(getattr(whole, role) or "")) != expected_id:
            raise CometError(f"{folder}: {role}: expected id {expected_id}, found {found}; the cache is damaged")
    settings, state = read_settings(folder) | {"model_max_length": recipe.seq_len}, read_tokenizer(cache)
    if vocabulary.trimmed:
        state = trimmed_state(state, vocabulary.student_id.tolist())
    state = state | {"normalizer": composing(state.get("normalizer"))}
    tokenizer = build_tokenizer(json.dumps(state, ensure_ascii=False).encode(), settings, len(vocabulary), str(folder))
    for token in whole.all_special_tokens:
        student_id = int(vocabulary.student_id[whole.convert_tokens_to_ids(token)])
        if (found := tokenizer.convert_tokens_to_ids(token)) != student_id:
            raise CometError(
                f"--vocabulary trimmed: {token} would get id {found} instead of {student_id}; this tokenizer cannot be "
                "trimmed, use --vocabulary full"
            )
    return tokenizer


def composing(normalizer: dict[str, Any] | None) -> dict[str, Any]:
    """Return the normaliser of a tokenizer.json, preceded by one that gives text the Unicode form of caches."""
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    if steps and steps[0]["type"] in COMPOSING:
        return {"type": "Sequence", "normalizers": steps}
    return {"type": "Sequence", "normalizers": [{"type": TEXT_FORM}, *steps]}
