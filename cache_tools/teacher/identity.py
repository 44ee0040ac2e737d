"""Which teacher it is: the fields of a recipe that say so."""

from typing import Any

from transformers import PreTrainedTokenizerFast

from cache_tools.store.recipe import Recipe, is_digest
from cache_tools.teacher.model import Teacher
from cache_tools.text.tokenizer import tokenizer_sha256

SHOWN_DIGITS = 12


def identity(teacher: Teacher, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Fields of `Recipe` by name, all that follow from the teacher and its tokenizer alone."""
    config = teacher.model.config
    return {
        "teacher_sha256": teacher.sha256,
        "teacher_architecture": type(teacher.model).__name__,
        "teacher_parameters": teacher.parameters,
        "teacher_layers": config.num_hidden_layers,
        "teacher_hidden": config.hidden_size,
        "teacher_heads": config.num_attention_heads,
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "vocab_size": len(teacher.head.weight),
        "bos_id": tokenizer.cls_token_id,
        "eos_id": tokenizer.sep_token_id,
        "pad_id": tokenizer.pad_token_id,
        "mask_id": tokenizer.mask_token_id,
        "special_ids": tuple(sorted(tokenizer.all_special_ids)),
    }


def identity_differences(recipe: Recipe, teacher: Teacher, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """One entry for each field in which this is not the recipe's teacher; empty when it is."""

    def shown(value: object) -> str:
        return f"{str(value)[:SHOWN_DIGITS]}…" if is_digest(value) else str(value)

    found = identity(teacher, tokenizer)
    return [
        f"{name.replace('teacher_sha256', 'teacher_weights_sha256').replace('_', ' ')} differ: "
        f"expected {shown(getattr(recipe, name))}, found {shown(value)}"
        for name, value in found.items()
        if getattr(recipe, name) != value
    ]
