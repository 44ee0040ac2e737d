"""The identity of a teacher: the fields of a recipe that follow from it."""

from typing import Any

from transformers import PreTrainedTokenizerFast

from cache_tools.store.recipe import Recipe, is_digest
from cache_tools.teacher.model import Teacher
from cache_tools.text.tokenizer import tokenizer_sha256

SHOWN_DIGITS = 12


def identity(teacher: Teacher, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return the fields of `Recipe`, by name, that follow from the teacher and its tokenizer alone."""
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
    """Return one entry for each field in which this teacher differs from the recipe's."""

    def shown(value: object) -> str:
        return f"{str(value)[:SHOWN_DIGITS]}…" if is_digest(value) else str(value)

    return [
        f"{name.replace('teacher_sha256', 'teacher_weights_sha256').replace('_', ' ')} differ: "
        f"expected {shown(getattr(recipe, name))}, found {shown(value)}"
        for name, value in identity(teacher, tokenizer).items()
        if getattr(recipe, name) != value
    ]
