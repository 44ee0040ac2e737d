"""The shapes of students: the paper's, those that are a given share smaller than their teacher, or any from a file."""

import json
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModel

from cache_tools.checks import require_whole
from cache_tools.errors import CometError, first_line, visible
from cache_tools.places.foreign import named
from cache_tools.store.recipe import Recipe
from comet.student.family import StudentFamily, StudentShape, family_of
from comet.student.sizes import AUTO, DEFAULT_SIZE, PAPER, SHAPE_FIELDS, SMALLER, require_size

COMET = StudentShape(PAPER, 6, 256, 8, 1024)
UNSTARTED_LAYERS, UNSTARTED_HEADS = 6, 4  # of bodies with random weights: deep ones are hard to train
MOST_PARAMETERS = 2**27  # of a shape by its size, whatever size a cache says that its teacher has
LARGEST = 2**31  # parameters of a shape from a file: 8 GiB of float32


def choose_shape(requested: str, recipe: Recipe, vocab_size: int) -> StudentShape:
    """Return the paper's shape, one by its size, or one from a JSON config file.

    A size means the widest student, with all layers of the cache's start, that is at least so much smaller than the
    teacher and has at most MOST_PARAMETERS, or else the narrowest. Raises CometError if `requested` is none of these.
    """
    if requested == COMET.name:
        return COMET
    require_size(requested)
    name = DEFAULT_SIZE if requested == AUTO else requested
    if name in SMALLER:
        return _widest(name, recipe, vocab_size)
    return _from_file(requested, family_of(recipe), vocab_size)


def _widest(name: str, recipe: Recipe, vocab_size: int) -> StudentShape:
    """Return the widest shape that is at least as much smaller than the teacher as SMALLER says, else the narrowest."""
    family = family_of(recipe)
    limit = min((1 - SMALLER[name]) * recipe.teacher_parameters, MOST_PARAMETERS)
    layers, heads = len(recipe.start_layers), recipe.teacher_heads
    widest, neurons = recipe.start_width, recipe.start_neurons
    if not layers:
        layers, heads = min(UNSTARTED_LAYERS, recipe.teacher_layers), UNSTARTED_HEADS
        widest, neurons = recipe.teacher_hidden, 4 * recipe.teacher_hidden
    step = recipe.start_step if recipe.start_rope else heads * family.head_multiple

    def of_width(steps: int) -> StudentShape:
        width = steps * step
        count = width // recipe.start_step if recipe.start_rope else heads
        return StudentShape(name, layers, width, count, max(width * neurons // widest, 1))

    low, high = 1, max(widest // step, 1)  # the widest that is small enough lies between, or none is
    while low < high:
        middle = (low + high + 1) // 2
        if count_parameters(of_width(middle), vocab_size, family) <= limit:
            low = middle
        else:
            high = middle - 1
    return of_width(low)


def _from_file(requested: str, family: StudentFamily, vocab_size: int) -> StudentShape:
    path = Path(requested)
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise CometError(f"--student {requested}: not JSON: {first_line(error)}", exit_code=2) from None
    missing = [name for name in SHAPE_FIELDS if not isinstance(config, dict) or name not in config]
    if missing:
        raise CometError(
            f"--student {requested}: expected a JSON object with {', '.join(SHAPE_FIELDS)}; it lacks "
            f"{', '.join(missing)}",
            exit_code=2,
        )
    if others := sorted(config.keys() - set(SHAPE_FIELDS)):
        tqdm.write(f"--student {requested}: gives the four sizes only; not used: {visible(named(others))}")
    layers, hidden, heads, intermediate = (config[name] for name in SHAPE_FIELDS)
    for name in SHAPE_FIELDS:
        require_whole(config[name], f"--student {requested}: {name}", 1, 2**20)
    if hidden % heads:
        raise CometError(f"--student {requested}: {hidden} is not a multiple of {heads} heads", exit_code=2)
    if hidden // heads % family.head_multiple:
        raise CometError(
            f"--student {requested}: each of {heads} heads would be {hidden // heads} wide; expected a multiple of "
            f"{family.head_multiple} for a {family.name} student, change hidden_size or num_attention_heads",
            exit_code=2,
        )
    parameters = vocab_size * hidden + layers * hidden * (4 * hidden + 2 * intermediate)  # all that grows fast
    if parameters > LARGEST:
        raise CometError(
            f"--student {requested}: {parameters:,} parameters and more; expected at most {LARGEST:,}", exit_code=2
        )
    return StudentShape(path.stem, layers, hidden, heads, intermediate)


def count_parameters(shape: StudentShape, vocab_size: int, family: StudentFamily) -> int:
    """Count parameters as the paper does: the body, with its pooler if the family has one, without the masked-LM
    head."""
    with torch.device("meta"):
        return sum(p.numel() for p in AutoModel.from_config(family.config(shape, vocab_size)).parameters())
