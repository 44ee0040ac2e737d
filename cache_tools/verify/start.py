"""Checks of a cache's start: its values alone, and against the teacher that it comes from."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import CometError
from cache_tools.store.layout import ArraySpec
from cache_tools.store.reader import Cache
from cache_tools.store.recipe import Recipe
from cache_tools.store.start import read_start, start_arrays

if TYPE_CHECKING:  # the teacher needs torch, which checking values does not
    import torch

    from cache_tools.teacher.model import Teacher

Arrays = dict[str, NDArray]
ORTHONORMAL = 1e-4
SMALLEST = 1e-12
LARGEST_DIFFERENCE = 0.01  # of an array's norm: float16 and another device's float32 give a tenth of it


def start_errors(cache: Cache) -> Iterator[str]:
    """Yield the errors in the values of a start, of which at most two chunks are in memory at a time."""
    specs = start_arrays(cache.recipe)
    moments = "second_moment" if cache.recipe.start_rope else "norm"
    try:
        for name, spec in specs.items():
            for index in spec.chunks():
                values = read_start(cache, name, *spec.region(index))
                if name == moments and (values if cache.recipe.start_rope else values[:, 3]).min() < 0:
                    yield f"{cache.root}: start/{name}: a second moment is negative"
        if specs and not _is_orthonormal(cache, specs["basis"]):
            yield f"{cache.root}: start/basis: the columns are not orthonormal"
    except CometError as error:
        yield str(error)


def _is_orthonormal(cache: Cache, spec: ArraySpec) -> bool:
    columns = [spec.region(index) for index in spec.chunks()]
    for number, one in enumerate(columns):
        of_one = read_start(cache, "basis", *one).astype(float)  # [H, b]
        for other in columns[number:]:
            product = of_one.T @ read_start(cache, "basis", *other).astype(float)  # [b, b]
            if np.abs(product - (np.eye(len(product)) if other == one else 0.0)).max() > ORTHONORMAL:
                return False
    return True


def compare_start(cache: Cache, teacher: "Teacher", device: "torch.device") -> list[str]:
    """Compute the start again from the teacher, in the stored basis and orders. Return how it differs, in words.

    Raises CometError if this copy does not hold the rows that it comes from.
    """
    import torch

    from cache_tools.build.start import compute_start
    from cache_tools.teacher.start.frame import StartFrame

    recipe, vocabulary = cache.recipe, cache.vocabulary
    stored = {name: read_start(cache, name) for name in start_arrays(recipe)}
    if not stored:
        return []
    basis = torch.from_numpy(stored["basis"]).double()
    frame = StartFrame(basis, *(torch.from_numpy(stored[name]).long() for name in ("head_order", "neuron_order")))

    def read_tokens(shard: int) -> Arrays:
        return cache.read_tokens("train", shard)[0]

    found = compute_start(teacher, recipe, read_tokens, vocabulary.id, vocabulary.count, device, frame)
    expected = _comparable(found, recipe)
    differences = {name: _distance(array, expected[name]) for name, array in _comparable(stored, recipe).items()}
    return [
        f"{cache.root}: start/{name}: {difference:.2%} from the teacher's, expected at most {LARGEST_DIFFERENCE:.0%}"
        for name, difference in differences.items()
        if not difference <= LARGEST_DIFFERENCE
    ]


def _comparable(start: Arrays, recipe: Recipe) -> Arrays:
    """Return the arrays in a form that does not depend on the sign of a head's dimensions: the products of queries with
    keys, and of values with outputs, of each head. Heads of rotary positions are kept as they are."""
    if recipe.start_rope:
        return start
    heads, layers = recipe.teacher_heads, len(recipe.start_layers)
    attention = start["attention"].astype(np.float32)
    query, key, value, output = attention.reshape(layers, 4, -1, heads, recipe.start_width).transpose(1, 0, 3, 2, 4)
    _, query_bias, value_bias, context, _ = (
        start["attention_vector"].reshape(layers, 5, -1, heads).transpose(1, 0, 3, 2)[..., None]
    )
    products = {  # each [layers, heads, w, w], or [layers, heads, w, 1]
        "attention (queries and keys)": query.swapaxes(2, 3) @ key,
        "attention (values and outputs)": value.swapaxes(2, 3) @ output,
        "attention_vector (queries)": key.swapaxes(2, 3) @ query_bias,
        "attention_vector (values)": output.swapaxes(2, 3) @ value_bias,
        "attention_vector (outputs)": output.swapaxes(2, 3) @ context,
        "attention_vector (stream)": start["attention_vector"][:, [0, 4]],
    }
    return {name: a for name, a in start.items() if not name.startswith("attention")} | products


def _distance(stored: NDArray, found: NDArray) -> float:
    """Return the distance of two arrays, relative to the norm of the second."""
    difference = stored.astype(float) - found.astype(float)
    return float(np.linalg.norm(difference) / np.maximum(np.linalg.norm(found.astype(float)), SMALLEST))
