"""The arrays of `start/`: layers of the teacher, of which every smaller student is a leading block."""

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import CometError
from cache_tools.store.layout import ArraySpec, decode_chunk, max_file_bytes
from cache_tools.store.recipe import MAX_SHARD_BYTES, Recipe

if TYPE_CHECKING:
    from cache_tools.store.reader import Cache

START = "start"
HEAD_ORDER, NEURON_ORDER = "head_order", "neuron_order"
SMALLEST_BLOCK = 256
MOST_BLOCKS = 8  # along one axis

Declared = tuple[tuple[int, ...], tuple[int, ...], str, tuple[str, ...]]
"""Shape, chunk, dtype and dimensions of an array."""


def start_arrays(recipe: Recipe) -> dict[str, ArraySpec]:
    """Return the arrays of the start by name, none if the recipe has no start.

    Raises CometError if a chunk would not fit in memory.
    """
    if not recipe.start_layers:
        return {}
    declared = _shared_arrays(recipe) | (_rotary_arrays(recipe) if recipe.start_rope else _post_norm_arrays(recipe))
    specs = {}
    for name, (shape, chunk, dtype, dimensions) in declared.items():
        fill = -1 if dtype == "int32" else math.nan
        specs[name] = ArraySpec(f"{START}/{name}", shape, chunk, np.dtype(dtype), fill, dimensions)
        if specs[name].chunk_bytes > MAX_SHARD_BYTES:
            raise CometError(
                f"--start-width {recipe.start_width}: {name} would take {specs[name].chunk_bytes} bytes of memory, "
                f"more than {MAX_SHARD_BYTES}; use a smaller --start-width",
                exit_code=2,
            )
    return specs


def _shared_arrays(recipe: Recipe) -> dict[str, Declared]:
    """Return shape, chunk, dtype and dimensions of the arrays that every start has."""
    layers, width, neurons, hidden = _sizes(recipe)
    tokens = recipe.seen_size + len(recipe.special_ids) + 1
    block = width // _blocks(recipe)
    return {
        "basis": ((hidden, width), (hidden, width), "float32", ("channel", "component")),
        "embedding": ((tokens, width), (tokens, block), "float16", ("token", "component")),
        "head_bias": ((2, tokens), (2, tokens), "float32", ("bias", "token")),
        "attention": ((layers, 4, width, width), (1, 4, block, block), "float16",
                      ("layer", "matrix", "head_dimension", "component")),
        "head": ((3, width, width), (3, block, block), "float32", ("moment", "component_out", "component_in")),
        "head_mean": ((width,), (width,), "float32", ("component",)),
        HEAD_ORDER: ((layers, recipe.teacher_heads), (layers, recipe.teacher_heads), "int32", ("layer", "head")),
        NEURON_ORDER: ((layers, neurons), (layers, neurons), "int32", ("layer", "neuron")),
        **_exact({"head_dense": (hidden + 1, hidden)}, recipe, ("channel_out", "channel_in")),
    }  # fmt: skip


def _post_norm_arrays(recipe: Recipe) -> dict[str, Declared]:
    """Return those of teachers with norms after the residual sum."""
    layers, width, neurons, hidden = _sizes(recipe)
    parts, norms = _blocks(recipe), 1 + 2 * layers
    block, many, positions = width // parts, neurons // parts, recipe.start_positions
    return {
        "position": ((positions, width), (positions, block), "float16", ("position", "component")),
        "norm": ((norms, 4, width), (norms, 4, width), "float32", ("norm", "vector", "component")),
        "attention_vector": ((layers, 5, width), (layers, 5, width), "float32", ("layer", "vector", "component")),
        "ffn": ((layers, 2, neurons, width), (1, 2, many, block), "float16",
                ("layer", "matrix", "neuron", "component")),
        "ffn_vector": ((layers, 2, neurons), (layers, 2, neurons), "float32", ("layer", "vector", "neuron")),
        "ffn_output": ((layers, 2, width), (layers, 2, width), "float32", ("layer", "vector", "component")),
        **_exact({"norm_weight": (norms + 1, 2, hidden)}, recipe, ("norm", "vector", "channel")),
    }  # fmt: skip


def _rotary_arrays(recipe: Recipe) -> dict[str, Declared]:
    """Return those of teachers with norms before attention and a gated feed-forward, rotary positions and no biases.

    Of `second_moment`, the first two rows are the embeddings within their norm and after it, then come the inputs of
    attention and feed-forward of each layer, then that of the head.
    """
    layers, width, neurons, hidden = _sizes(recipe)
    parts, sites = _blocks(recipe), 3 + 2 * layers
    block, many = width // parts, neurons // parts
    return {
        "ffn": ((layers, 3, neurons, width), (1, 3, many, block), "float16",
                ("layer", "matrix", "neuron", "component")),
        "second_moment": ((sites, width), (sites, width), "float32", ("site", "component")),
        "embedding_scale": ((width,), (width,), "float32", ("component",)),
        **_exact({"norm_weight": (2, hidden)}, recipe, ("norm", "channel")),
    }  # fmt: skip


def _exact(shapes: dict[str, tuple[int, ...]], recipe: Recipe, dimensions: tuple[str, ...]) -> dict[str, Declared]:
    """Return arrays in the teacher's own channels, which only a start of the teacher's full width has."""
    whole = recipe.start_width == recipe.teacher_hidden
    return {name: (shape, shape, "float32", dimensions) for name, shape in shapes.items() if whole}


def _sizes(recipe: Recipe) -> tuple[int, int, int, int]:
    """Return layers, width and neurons of the start, and the width of the teacher."""
    return len(recipe.start_layers), recipe.start_width, recipe.start_neurons, recipe.teacher_hidden


def _blocks(recipe: Recipe) -> int:
    """Return into how many equal blocks the axes of components and neurons are cut."""
    width, neurons, found = recipe.start_width, recipe.start_neurons, 1
    while found < MOST_BLOCKS and width % (2 * found) == neurons % (2 * found) == 0:
        if width // (2 * found) < SMALLEST_BLOCK:
            break
        found *= 2
    return found


def describe_start(recipe: Recipe) -> str:
    """Return what students may begin with, for `info` and the card."""
    if not recipe.start_layers:
        return "none: students begin with a random body"
    layers = len(recipe.start_layers)
    kept = f"{layers} of the teacher's {recipe.teacher_layers} layers, for students up to {recipe.start_width} wide"
    return kept + (", its own width" if recipe.start_width == recipe.teacher_hidden else "")


def start_chunks(recipe: Recipe) -> list[str]:
    """Return the files of all chunks of the start, which a reader needs in part only."""
    return [path for spec in start_arrays(recipe).values() for path in spec.chunk_paths()]


def read_start(cache: "Cache", name: str, *region: slice) -> NDArray:
    """Return a region of an array of the start; only the chunks that it touches are read.

    `region` has a slice without a step for each of the leading axes; the others are whole. Raises CometError if the
    cache has no such array, a file is not the sealed one, a value is not finite, or an order is not one.
    """
    specs = start_arrays(cache.recipe)
    if name not in specs:
        held = f"it has {', '.join(specs)}" if specs else "build one with --start-layers"
        raise CometError(f"{cache.name}: has no start/{name}; {held}", exit_code=2)
    spec = specs[name]
    wanted = tuple(slice(*r.indices(size)[:2]) for r, size in zip(region, spec.shape, strict=False))
    wanted += tuple(slice(0, size) for size in spec.shape[len(wanted) :])
    paths = {index: spec.chunk_path(*index) for index in spec.chunks(wanted)}
    limits = dict.fromkeys(paths.values(), max_file_bytes(spec))
    files = cache.read_files({path: cache.seal.files[path] for path in limits}, limits)
    found = np.empty([r.stop - r.start for r in wanted], spec.dtype)
    for index, path in paths.items():
        chunk, at = decode_chunk(spec, files[path], spec.chunk[0]), spec.region(index)
        _copy_overlap(chunk, at, found, wanted)
    if not np.isfinite(found).all():
        raise CometError(f"{cache.name}: start/{name}: a value is not finite; the cache is damaged")
    if name in (HEAD_ORDER, NEURON_ORDER):
        _check_order(cache, name, found)
    return found


def _check_order(cache: "Cache", name: str, order: NDArray) -> None:
    """Raise CometError unless all numbers of a layer [n, …] are different ones of the teacher's heads or neurons."""
    recipe = cache.recipe
    neurons = recipe.teacher_hidden * recipe.start_neurons // recipe.start_width  # of the teacher's, at most
    most = recipe.teacher_heads if name == HEAD_ORDER else neurons
    if order.min() < 0 or order.max() >= most or (np.diff(np.sort(order, axis=1), axis=1) == 0).any():
        raise CometError(
            f"{cache.name}: start/{name}: expected different numbers below {most} in each layer, found others; the "
            "cache is damaged"
        )


def _copy_overlap(chunk: NDArray, at: tuple[slice, ...], out: NDArray, region: tuple[slice, ...]) -> None:
    """Copy the part of a chunk that overlaps `region` to `out`, the array of that region; the chunk lies `at`."""
    overlap = [slice(max(a.start, r.start), min(a.stop, r.stop)) for a, r in zip(at, region, strict=True)]
    source = tuple(slice(o.start - a.start, o.stop - a.start) for o, a in zip(overlap, at, strict=True))
    target = tuple(slice(o.start - r.start, o.stop - r.start) for o, r in zip(overlap, region, strict=True))
    out[target] = chunk[source]
