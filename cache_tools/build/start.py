"""Choose which of the teacher's layers a build keeps as its start, and compute them from some rows of the text."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from cache_tools.anatomy import GLOBAL, LOCAL, anatomy_of, why_no_start
from cache_tools.errors import CometError
from cache_tools.models import max_positions
from cache_tools.progress import show_progress
from cache_tools.settings import AUTO, START_WIDTH, BuildSettings, parse_layers
from cache_tools.store.recipe import Recipe
from cache_tools.teacher.forward import HostBatch, host_batch
from cache_tools.teacher.model import Teacher
from cache_tools.teacher.start import make_start
from cache_tools.teacher.start.activations import observe
from cache_tools.teacher.start.frame import StartFrame

START_TOKENS = 2**15  # of the rows that give the moments of activations
SHARDS = 16  # that these rows are spread over, if they hold as many
ROWS_AT_ONCE = 32

ReadTokens = Callable[[int], dict[str, NDArray]]
"""Returns the token arrays of a training shard."""


@dataclass(frozen=True)
class StartShape:
    """What a start keeps of the teacher: its layers, components of the stream, neurons of a feed-forward, positions.

    If these are rotary, `rope` holds their bases in global and local layers, `local_layers` the layers kept that see a
    `window` only, and `positions` is 0.
    """

    layers: tuple[int, ...] = ()
    width: int = 0
    neurons: int = 0
    positions: int = 0
    local_layers: tuple[int, ...] = ()
    window: int = 0
    rope: tuple[float, ...] = ()


def choose_start(settings: BuildSettings, teacher: Teacher) -> StartShape:
    """Return the shape of the start, empty if none is wanted, or if `auto` finds that the teacher allows none.

    Raises CometError if layers are asked for that the teacher does not allow, or a width that does not fit.
    """
    config = teacher.model.config
    wanted = settings.start_layers
    layers = parse_layers("all" if wanted == AUTO else wanted, config.num_hidden_layers, "--start-layers")
    if not layers:
        return StartShape()
    if (reason := why_no_start(teacher.model)) is not None:
        if wanted == AUTO:
            return StartShape()
        raise CometError(f"--start-layers {wanted}: students cannot start from this teacher: {reason}", exit_code=2)
    anatomy, hidden, heads = anatomy_of(type(teacher.model).__name__), config.hidden_size, config.num_attention_heads
    rotary = anatomy is not None and anatomy.norm_first
    step, counted = (hidden // heads, "size of a head") if rotary else (heads, "number of heads")
    width = settings.start_width or max(min(START_WIDTH, hidden) // step, 1) * step
    if width % step or not 0 < width <= hidden:
        nearest = max(min(width, hidden) // step, 1) * step
        raise CometError(
            f"--start-width {width}: expected a multiple of the teacher's {counted}, {step}, up to its width {hidden}, "
            f"such as {nearest}",
            exit_code=2,
        )
    shape = StartShape(layers, width, -(-config.intermediate_size * width // hidden))  # their share, rounded up
    if not rotary:
        return replace(shape, positions=max_positions(config))
    local = tuple(layer for layer in layers if config.layer_types[layer] == LOCAL)
    bases = (float(config.rope_parameters[kind]["rope_theta"]) for kind in (GLOBAL, LOCAL))
    return replace(shape, local_layers=local, window=config.local_attention if local else 0, rope=tuple(bases))


def start_rows(train_rows: int, seq_len: int) -> int:
    """Return the number of training rows that give the moments."""
    return min(train_rows, -(-START_TOKENS // seq_len))


def compute_start(
    teacher: Teacher,
    recipe: Recipe,
    read_tokens: ReadTokens,
    ids: NDArray,
    count: NDArray,
    device: torch.device,
    frame: StartFrame | None = None,
) -> dict[str, NDArray]:
    """Return the arrays of the start, from the teacher in float32 on `device`; none if the recipe keeps no layers.

    `teacher` is on the CPU, before and after; `ids` and `count` are those of the vocabulary; for `frame` see
    `make_start`. Raises CometError if a value is too large for its dtype.
    """
    anatomy = anatomy_of(recipe.teacher_architecture)
    if not recipe.start_layers or anatomy is None:
        return {}
    found = observe(teacher.to(device, torch.float32), anatomy, start_batches(recipe, read_tokens))
    arrays = make_start(teacher.to(torch.device("cpu"), torch.float32), anatomy, recipe, found, ids, count, frame)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise CometError(
                f"the teacher's start/{name} is not finite in {array.dtype}; build without it: --start-layers none"
            )
    return arrays


def start_batches(recipe: Recipe, read_tokens: ReadTokens) -> Iterator[HostBatch]:
    """Yield the rows that give the moments: the recipe's number of them, evenly spread over a few shards, or over as
    many as hold so many rows."""
    fewest = -(-recipe.start_rows // recipe.rows_per_shard)
    count = min(recipe.shards("train"), max(SHARDS, fewest))
    shards = [i * recipe.shards("train") // count for i in range(count)]
    ends = np.cumsum([recipe.shard_rows("train", shard) for shard in shards])
    wanted = np.arange(recipe.start_rows) * ends[-1] // recipe.start_rows  # rows of these shards, one after the other
    for shard, end in zip(show_progress(shards, "start", "shard"), ends, strict=True):
        first = end - recipe.shard_rows("train", shard)
        numbers = wanted[(first <= wanted) & (wanted < end)] - first
        tokens = read_tokens(shard) if len(numbers) else {}
        for start in range(0, len(numbers), ROWS_AT_ONCE):
            chosen = numbers[start : start + ROWS_AT_ONCE]
            yield host_batch(recipe, {name: array[chosen] for name, array in tokens.items()})
