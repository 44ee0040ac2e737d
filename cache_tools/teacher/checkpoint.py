"""Refuse a checkpoint that transformers would compute only in part: weights left out, settings ignored."""

import re
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from cache_tools.errors import CometError

OF_NO_USE = re.compile(
    r"(^|\.)(position_ids|token_type_ids)$"  # buffers of earlier versions
    r"|(^|\.)pooler\.|^cls\.seq_relationship\.|^discriminator_predictions\."  # heads of other tasks of the pretraining
    r"|^(classifier|qa_outputs|score|dropout)\.|^lm_head\.decoder\.|^cls\.predictions\.decoder\."  # tied
)
"""Names in a checkpoint that a masked LM does not need."""


def require_supported(name: str, model: PreTrainedModel, loading: Mapping[str, Any]) -> None:
    """Raise CometError if the model lacks weights, or its checkpoint has weights or settings that it does not use.

    `loading` is the loading info of transformers' `from_pretrained`.
    """
    if others := sorted(loading["mismatched_keys"] or []):
        key, found, expected = others[0]
        raise CometError(
            f"teacher {name}: {key} has the shape {list(found)} in the checkpoint, {list(expected)} by config.json; "
            "they do not belong together, get both again"
        )
    if missing := sorted(loading["missing_keys"] or []):
        raise CometError(
            f"teacher {name}: the checkpoint has no masked-LM head or is incomplete (missing {_some(missing)}); a head "
            "of random numbers would teach nothing"
        )
    if unused := [key for key in sorted(loading["unexpected_keys"] or []) if OF_NO_USE.search(key) is None]:
        raise CometError(
            f"teacher {name}: the checkpoint holds {_some(unused)}, which {type(model).__name__} of transformers does "
            "not use, so it would not compute what was trained; choose a teacher that it supports in full"
        )
    config = model.config
    positions = getattr(config, "position_embedding_type", None) or "absolute"
    learnt = any("distance_embedding" in key for key in model.state_dict())
    if positions.startswith("relative") and not learnt:
        raise CometError(
            f"teacher {name}: its config.json says position_embedding_type {positions}, which {type(model).__name__} "
            "of transformers does not compute any more; choose a teacher with absolute positions"
        )
    if getattr(config, "is_decoder", False):
        raise CometError(
            f"teacher {name}: its config.json says is_decoder: it sees only the words before each, and cannot teach "
            "masked words; choose a masked LM"
        )


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:4]) + (", …" if len(keys) > 4 else "")
