"""A student of ModernBERT's kind from a leading block of its teacher's layers: its settings, and its weights by name.

See `cache_tools.teacher.start.pre_norm`. The student keeps whole heads of the teacher's size, the local ones with the
teacher's window. Its norms have one scale each, which makes up for the components that it lacks.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cache_tools.anatomy import (
    GLOBAL,
    LOCAL,
    MODERN_ATTENTION_NORM,
    MODERN_DOWN,
    MODERN_EMBEDDING_NORM,
    MODERN_FFN_NORM,
    MODERN_FINAL_NORM,
    MODERN_OUTPUT,
    MODERN_QKV,
    MODERN_UP,
    Anatomy,
)
from cache_tools.store.recipe import Recipe
from comet.student.family import Read, StudentShape


def rotary_settings(recipe: Recipe, chosen: Sequence[int]) -> dict[str, Any]:
    """Return the fields of a config that students of these kept layers have from their teacher.

    The bias of the head's dense layer lets gelu pass what it reads unchanged; see `comet.student.start.fit_head`.
    """
    of_global, of_local = recipe.start_rope
    layers = [recipe.start_layers[index] for index in chosen]
    fields: dict[str, Any] = {
        "layer_types": [LOCAL if layer in recipe.start_local_layers else GLOBAL for layer in layers],
        "rope_parameters": {
            GLOBAL: {"rope_type": "default", "rope_theta": of_global},
            LOCAL: {"rope_type": "default", "rope_theta": of_local},
        },
        "classifier_bias": True,
    }
    return fields | ({"local_attention": recipe.start_window} if recipe.start_window else {})


def body_weights(
    read: Read, recipe: Recipe, anatomy: Anatomy, chosen: Sequence[int], shape: StudentShape, turn: Tensor
) -> dict[str, Tensor]:
    """Return the weights of all norms and layers by name, but for the head's.

    `chosen` are the kept layers that it has; `turn` [components, channels] leads from the components to its channels.
    """
    whole = shape.hidden == recipe.teacher_hidden
    second = read("second_moment", slice(None), slice(len(turn)))
    power = (second if whole else second[:, :-1]).sum(1)  # norms remove the last component of a narrower student
    # its norms make vectors as long as its width, but in the teacher's these components have only a part of the length
    scales = (torch.ones_like(power) if whole else (power / shape.hidden).sqrt())[:, None].expand(-1, shape.hidden)
    if whole:
        embedding_scale = read("norm_weight")[0]
    else:
        embedding_scale = turn.square().T @ read("embedding_scale", slice(len(turn))) * scales[0]
    weights = {MODERN_EMBEDDING_NORM: embedding_scale, MODERN_FINAL_NORM: scales[-1]}
    for layer, index in enumerate(chosen):
        site, name = 2 + 2 * index, f"{anatomy.layers}.{layer}"
        attention, ffn = _matrices(read, index, shape)
        if layer == 0:  # reads the embeddings without a norm, as the teacher's first layer does, but others do not
            attention[:3] *= (power[site] / power[1]).sqrt()
        else:
            weights[f"{name}.{MODERN_ATTENTION_NORM}"] = scales[site]
        weights |= {
            f"{name}.{MODERN_QKV}": attention[:3].flatten(0, 1) @ turn,
            f"{name}.{MODERN_OUTPUT}": (attention[3] @ turn).T,
            f"{name}.{MODERN_FFN_NORM}": scales[site + 1],
            f"{name}.{MODERN_UP}": ffn[:2].flatten(0, 1) @ turn,
            f"{name}.{MODERN_DOWN}": (ffn[2] @ turn).T,
        }
    return {f"{anatomy.body}.{name}.weight": weight for name, weight in weights.items()}


def _matrices(read: Read, index: int, shape: StudentShape) -> tuple[Tensor, Tensor]:
    """Return attention [4, d, d] and ffn [3, f, d] of a kept layer."""
    layer, components = slice(index, index + 1), slice(shape.hidden)
    attention = read("attention", layer, slice(4), components, components)
    return attention[0], read("ffn", layer, slice(3), slice(shape.intermediate), components)[0]
