"""The start: the teacher's layers in one orthogonal basis, ordered so that every smaller student is a leading block.

The residual stream is rotated to its principal components, leading first. Heads and neurons of the feed-forward are
sorted by what they add to the stream. `store.start` declares the arrays, `comet.student.start` makes a student of them;
both rest on:

- A rotated matrix cut to its leading block is nearly the least-squares fit of the whole one, because principal
  components are nearly uncorrelated.
- Where positions are added to the stream, a query and key may be multiplied by any matrix and its inverse. So may a
  value and its output. The dimensions of a head are then sorted by singular value.
- A constant added to all keys changes no attention.
"""

from numpy.typing import NDArray

from cache_tools.anatomy import Anatomy
from cache_tools.store.recipe import Recipe
from cache_tools.store.start import start_arrays
from cache_tools.teacher.model import Teacher
from cache_tools.teacher.start import post_norm, pre_norm
from cache_tools.teacher.start.activations import Activations
from cache_tools.teacher.start.frame import StartFrame, head_moments, project_embeddings


def make_start(
    teacher: Teacher,
    anatomy: Anatomy,
    recipe: Recipe,
    found: Activations,
    ids: NDArray,
    count: NDArray,
    frame: StartFrame | None = None,
) -> dict[str, NDArray]:
    """Return the arrays of `store.start.start_arrays` for the layers and the width of the recipe.

    `ids` [V_seen] are the tokens of the corpus, `count` [V_seen] their numbers. The teacher is on the CPU in float32.
    With a `frame`, that of another start is used instead of a new one, so that both can be compared.
    """
    kind = pre_norm if anatomy.norm_first else post_norm
    frame = frame or kind.make_frame(teacher, anatomy, recipe, found)
    arrays = {
        **vars(frame),
        **kind.project_layers(teacher, anatomy, recipe, found, frame),
        **project_embeddings(teacher, recipe, found, ids, frame.basis),
        "head": head_moments(teacher, found, ids, count, frame.basis),
        "head_mean": found.hidden.mean @ frame.basis,
    }
    dtypes = {name: spec.dtype for name, spec in start_arrays(recipe).items()}
    return {name: array.detach().numpy().astype(dtypes[name]) for name, array in arrays.items()}
