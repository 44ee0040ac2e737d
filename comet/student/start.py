"""Make a student of a cache's start: its first weights are a leading block of the teacher's layers.

See `cache_tools.teacher.start` for what the arrays are, `store/FORMAT.md` for their shapes. A student as wide as the
teacher has the teacher's own channels again, and equals it, layer for layer, but for the rounding of float16. A
narrower one lives in the leading principal components, turned so that its norms, which subtract the mean of a vector,
lose the least important component and no other. Of several caches these are the components of all their texts; see
`comet.student.joint_start`.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cache_tools.anatomy import POSITIONS, TOKEN_TYPES, Anatomy, anatomy_of
from cache_tools.errors import CometError
from cache_tools.settings import parse_layers
from cache_tools.store.reader import Cache
from cache_tools.store.recipe import Recipe
from cache_tools.store.start import read_start
from comet.student import post_norm, pre_norm
from comet.student.family import Read, StudentShape, output_layer, word_embeddings
from comet.student.joint_start import JointStart, join_starts
from comet.student.vocabulary import StudentVocabulary

LINEAR = 8.0  # added to inputs of standard deviation 1, so that gelu passes them on as they are


def start_cache(caches: Sequence[Cache]) -> Cache | None:
    """Return the first cache that has a start, None if there is none."""
    return next((cache for cache in caches if cache.recipe.start_layers), None)


def joined_caches(shape: StudentShape, caches: Sequence[Cache]) -> list[Cache]:
    """Return the caches whose starts are joined to that of a student: the first that has one, and those of the same
    layers. A student as wide as its teacher needs the first only."""
    cache = start_cache(caches)
    if cache is None:
        return []
    if shape.hidden == cache.recipe.teacher_hidden:
        return [cache]
    return [one for one in caches if one.recipe.start_layers == cache.recipe.start_layers]


def start_layers(recipe: Recipe, layers: int) -> tuple[int, ...]:
    """Return the kept layers of a student with `layers` layers, as indices into the start: evenly spread, the last
    among them."""
    return parse_layers(f"spread:{layers}", len(recipe.start_layers))


def misfit(shape: StudentShape, recipe: Recipe) -> str | None:
    """Return why a student of this shape cannot begin with the start of a cache, None if it can."""
    heads, size = recipe.teacher_heads, shape.hidden // shape.heads
    limits = {
        "layers": (shape.layers, len(recipe.start_layers)),
        "width": (shape.hidden, recipe.start_width),
        "neurons": (shape.intermediate, recipe.start_neurons),
    }
    if not recipe.start_rope:
        limits |= {"heads": (shape.heads, heads), "dimensions of a head": (size, recipe.start_width // heads)}
    over = [f"{name} {wanted}, the start has {most}" for name, (wanted, most) in limits.items() if wanted > most]
    if recipe.start_rope and size != recipe.start_step:
        over.append(f"dimensions of a head {size}, the start has whole heads of {recipe.start_step}")
    return "; ".join(over) or None


def start_settings(shape: StudentShape, caches: Sequence[Cache]) -> dict[str, Any]:
    """Return the fields of a student's config that follow from the start: which of its layers are local, and how.

    Raises CometError as `begin_with_start` does.
    """
    recipe = _fitting_start(shape, caches).recipe
    return pre_norm.rotary_settings(recipe, start_layers(recipe, shape.layers)) if recipe.start_rope else {}


def _fitting_start(shape: StudentShape, caches: Sequence[Cache]) -> Cache:
    """Return the first cache that has a start. Raises CometError if there is none, or the shape does not fit it."""
    cache = start_cache(caches)
    if cache is None:
        raise CometError(
            f"--init start: {caches[0].name} has no start; use --init cache, or build a cache with --start-layers",
            exit_code=2,
        )
    if (reason := misfit(shape, cache.recipe)) is not None:
        raise CometError(
            f"--student {shape}: does not fit the start of {cache.name} ({reason}); use a smaller --student, or --init "
            "cache, or build a cache with a larger --start-width and all --start-layers",
            exit_code=2,
        )
    return cache


@torch.no_grad()
def begin_with_start(
    student: PreTrainedModel, shape: StudentShape, caches: Sequence[Cache], vocabulary: StudentVocabulary
) -> None:
    """Set all weights of a student's body and head from the first cache that has a start.

    Raises CometError if there is none, the shape does not fit it, or a file is damaged.
    """
    cache = _fitting_start(shape, caches)
    anatomy = anatomy_of(type(student).__name__)
    if anatomy is None:
        kind = type(student).__name__
        raise CometError(f"{cache.name}: has a start, but {kind} cannot begin with one; the cache is damaged")
    try:
        _set_weights(student, anatomy, shape, caches, cache, vocabulary)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise CometError(f"{cache.name}: start/head: moments that cannot be inverted; the cache is damaged") from error
    if not all(parameter.isfinite().all() for parameter in student.parameters()):
        raise CometError(f"{cache.name}: its start gives weights that are not finite; the cache is damaged")


def _set_weights(
    student: PreTrainedModel,
    anatomy: Anatomy,
    shape: StudentShape,
    caches: Sequence[Cache],
    cache: Cache,
    vocabulary: StudentVocabulary,
) -> None:
    """Set all weights from the start of `cache`, joined with those of others in `caches`."""
    width, whole = shape.hidden, shape.hidden == cache.recipe.teacher_hidden
    joined = joined_caches(shape, caches)
    reads = [partial(_read, one) for one in joined]
    joint = join_starts([one.recipe for one in joined], reads) if len(joined) > 1 else None
    read: Read = reads[0] if joint is None else joint.read
    turn = read("basis").T if whole else _turn(width)  # [components, channels]
    of_tokens = list(_token_rows(caches, joined, joint, read, width))
    _set_embeddings(student, of_tokens, vocabulary, turn, whole)
    mean = read("head_mean", slice(width))
    chosen = start_layers(cache.recipe, shape.layers)
    if cache.recipe.start_rope:
        mean[-1] = 0.0  # which the final norm removes and, without a bias, does not give back
        body_weights = pre_norm.body_weights
    else:
        _set_positions(student, anatomy, read, turn)
        body_weights = post_norm.body_weights
    for name, weight in body_weights(read, cache.recipe, anatomy, chosen, shape, turn).items():
        student.get_parameter(name).copy_(weight)
    _set_head(student, anatomy, read, mean, turn, whole)


def _set_head(student: PreTrainedModel, anatomy: Anatomy, read: Read, mean: Tensor, turn: Tensor, whole: bool) -> None:
    """Set dense layer and norm of the head. `mean` [d] is that of its input, in components."""
    layer, norm = (student.get_submodule(name) for name in (anatomy.head_dense, anatomy.head_norm))
    width = len(mean)
    if whole:
        dense, last = read("head_dense"), read("norm_weight")[-1]  # [H + 1, H], [H] or [2, H]
        _copy(layer, dense[:-1], dense[-1])
        _copy(norm, *last.view(-1, width))
        return
    dense, bias, scale = fit_head(read("head", slice(3), slice(width), slice(width)), turn)
    _copy(layer, dense, bias - dense @ (mean @ turn))
    _copy(norm, torch.full((width,), scale), *([] if norm.bias is None else [torch.zeros(width)]))


def _read(cache: Cache, name: str, *region: slice) -> Tensor:
    return torch.from_numpy(read_start(cache, name, *region)).double()


def _copy(module: torch.nn.Module, weight: Tensor, bias: Tensor | None = None) -> None:
    module.weight.copy_(weight)  # type: ignore[operator]
    if bias is not None:
        module.bias.copy_(bias)  # type: ignore[operator]


def _turn(width: int) -> Tensor:
    """Return an orthogonal matrix [d, d] that turns the last component into the direction of equal entries, which norms
    remove: a Householder reflection."""
    between = torch.full((width,), -(width**-0.5), dtype=torch.float64)
    between[-1] += 1.0
    length = between.norm()
    between = between / length if length > 0 else between
    return torch.eye(width, dtype=torch.float64) - 2.0 * torch.outer(between, between)


def fit_head(moments: Tensor, turn: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return (dense [d, d], its bias, the scale of the norm) of a head, from leading blocks of `head` [3, d, d].

    The dense layer is the linear map of hidden states to features whose logits are nearest, in the mean over tokens:
    M⁻¹ G C⁻¹ of the three moments. Its outputs have deviation 1, far enough from 0 for gelu to be linear; the norm
    subtracts their common mean again.
    """
    metric, cross, hidden = moments
    dense = torch.linalg.solve(hidden, torch.linalg.solve(metric, cross), left=False)  # [d, d]
    scale = ((dense @ hidden) * dense).sum().div(len(dense)).sqrt()
    return turn.T @ (dense / scale) @ turn, torch.full((len(dense),), LINEAR, dtype=torch.float64), scale.item()


TokenRows = tuple[Cache, Tensor, Tensor]
"""A cache, and `embedding` [n, w] and `head_bias` [2, n] of its tokens in the components of the student."""


def _token_rows(
    caches: Sequence[Cache], joined: Sequence[Cache], joint: JointStart | None, read: Read, width: int
) -> Iterator[TokenRows]:
    """Yield those of the caches that give the start, then those of others with one, moved to its components."""
    if joint is None:
        yield joined[0], read("embedding", slice(None), slice(width)), read("head_bias")
    else:
        yield from zip(joined, joint.rows, joint.bias, strict=True)
    for other in caches:
        if other.recipe.start_layers and other not in joined:
            move = _read(other, "basis").T @ read("basis", slice(None), slice(width))
            yield other, _read(other, "embedding") @ move, _read(other, "head_bias")


def _set_embeddings(
    student: PreTrainedModel, found: Sequence[TokenRows], vocabulary: StudentVocabulary, turn: Tensor, whole: bool
) -> None:
    """Set word embeddings and the head's bias. The first cache with a token decides; tokens of none begin at the mean
    of all that the first cache lacks."""
    weight, decoder = word_embeddings(student), output_layer(student)
    kind = 0 if whole else 1  # without or with the mean feature
    _, embedding, bias = found[0]
    weight.copy_((embedding[-1, : len(turn)] @ turn).expand_as(weight))
    decoder.bias.fill_(bias[kind, -1])
    for cache, rows, values in reversed(found):
        _set_tokens(weight, decoder.bias, cache, vocabulary, rows[:, : len(turn)] @ turn, values[kind])


def _set_positions(student: PreTrainedModel, anatomy: Anatomy, read: Read, turn: Tensor) -> None:
    table = anatomy.embeddings(student, POSITIONS)
    first = 0 if table.padding_idx is None else table.padding_idx + 1
    positions = read("position", slice(None), slice(len(turn))) @ turn
    count = min(len(positions), len(table.weight) - first)
    table.weight[first : first + count] = positions[:count].float()
    anatomy.embeddings(student, TOKEN_TYPES).weight.zero_()


def _set_tokens(
    weight: Tensor, bias: Tensor, cache: Cache, vocabulary: StudentVocabulary, rows: Tensor, values: Tensor
) -> None:
    """Set the embeddings and biases of a cache's tokens, special ones included, from the rows of its start."""
    ids = np.concatenate([cache.vocabulary.id, cache.recipe.special_ids]).astype(np.int64)
    at = vocabulary.student_id[torch.from_numpy(ids)]
    held = at >= 0
    weight[at[held]] = rows[:-1][held].to(weight.dtype)
    bias[at[held]] = values[:-1][held].to(bias.dtype)
