"""Compare ways to make the teacher's layers narrower: distance of the start before any gradient step, and after 300.

All ways have the same size, rows and steps; each is the default's with one thing changed.

    python benchmarks/start_fits.py --shared ../shared --folder start
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from quality import cache_of, finished, named
from quality_measures import Unseen, dense_measures, unseen_text
from start import WIDE, as_config
from torch import Tensor

from cache_tools import Cache, open_cache
from cache_tools.anatomy import anatomy_of
from cache_tools.build.start import start_batches
from cache_tools.store.layout import encode_chunk
from cache_tools.store.ledger import SEAL, file_record
from cache_tools.store.records import read_checked, with_checksum
from cache_tools.store.start import start_arrays
from cache_tools.teacher.model import Teacher, load_teacher
from cache_tools.teacher.start import make_start, post_norm
from cache_tools.teacher.start.activations import observe
from cache_tools.teacher.start.frame import StartFrame, falling, principal_basis
from cache_tools.text.tokenizer import load_tokenizer
from comet.distillation import distill
from comet.preparation import choose_vocabulary
from comet.settings import StudentConfig
from comet.student.model import new_student
from comet.student.shape import choose_shape

Arrays = dict[str, NDArray]


class Fits:
    """The ways to make a start for students of one width, from one teacher and the rows of a cache."""

    def __init__(self, teacher: Teacher, cache: Cache, width: int) -> None:
        anatomy = anatomy_of(cache.recipe.teacher_architecture)
        assert anatomy is not None
        self.teacher, self.cache, self.width, self.anatomy = teacher, cache, width, anatomy
        self.found = observe(
            teacher, anatomy, start_batches(cache.recipe, lambda shard: cache.read_tokens("train", shard)[0])
        )
        self.norms = post_norm.norms_of(teacher, anatomy, self.found)
        self.frame = post_norm.make_frame(teacher, anatomy, cache.recipe, self.found)

    def of_frame(self, frame: StartFrame) -> Arrays:
        ids, count = self.cache.vocabulary.id, self.cache.vocabulary.count
        return make_start(self.teacher, self.anatomy, self.cache.recipe, self.found, ids, count, frame)

    def default(self) -> Arrays:
        return self.of_frame(self.frame)

    def streams_alone(self) -> Arrays:
        """Principal components of the residual streams, whatever the head's features need."""
        streams = [norm.covariance for norm in self.norms]
        total = torch.stack(streams).sum(0)
        return self.of_frame(replace(self.frame, basis=principal_basis(streams, total)))

    def channels(self) -> Arrays:
        """The channels of greatest variance, without a rotation."""
        variance = torch.stack([norm.covariance.diagonal() for norm in self.norms]).sum(0)
        return self.of_frame(
            replace(self.frame, basis=torch.eye(len(variance), dtype=torch.float64)[:, falling(variance)])
        )

    def unsorted(self) -> Arrays:
        """Heads and neurons in the teacher's own order."""
        heads, neurons = (
            torch.arange(order.shape[1]).expand_as(order) for order in (self.frame.head_order, self.frame.neuron_order)
        )
        return self.of_frame(replace(self.frame, head_order=heads, neuron_order=neurons))

    def least_squares(self) -> Arrays:
        """Every matrix that reads the stream refitted to the components that are left, by least squares."""
        arrays = self.default()
        for layer, index in enumerate(self.cache.recipe.start_layers):
            before, within = self.norms[2 * index], self.norms[2 * index + 1]
            arrays["attention"][layer, :3] = self._refitted(arrays["attention"][layer, :3], before.covariance)
            arrays["ffn"][layer, :1] = self._refitted(arrays["ffn"][layer, :1], within.covariance)
        return arrays

    def _refitted(self, matrices: NDArray, covariance: Tensor) -> NDArray:
        """Return matrices [m, rows, w] whose leading columns do also what the others would, as far as they can."""
        rotated = (self.frame.basis.T @ covariance @ self.frame.basis).numpy()  # [w, w]
        leading = slice(self.width)
        whole = matrices.astype(float)
        refitted = whole.copy()
        refitted[..., leading] = whole @ rotated[:, leading] @ np.linalg.inv(rotated[leading, leading])
        return refitted.astype(matrices.dtype)

    ways = (default, streams_alone, channels, unsorted, least_squares)


def with_start(cache: Cache, arrays: Arrays, folder: Path) -> Cache:
    """Return a copy of a cache with another start."""
    shutil.copytree(cache.root, folder)
    seal = {name: value for name, value in read_checked(folder / SEAL).items() if name != "checksum"}
    for name, spec in start_arrays(cache.recipe).items():
        for index in spec.chunks():
            path, data = spec.chunk_path(*index), encode_chunk(spec, arrays[name][spec.region(index)])
            (folder / path).write_bytes(data)
            seal["files"][path] = file_record(data).to_json()
    (folder / SEAL).write_bytes(with_checksum(seal))
    return open_cache(folder)


def measured(make: Callable[[], Arrays], cache: Cache, unseen: Unseen, steps: int) -> dict[str, Any]:
    """Return the dense KL without a step, and the validation KL before and after some."""
    layers, width = WIDE
    with tempfile.TemporaryDirectory() as work:
        other = with_start(cache, make(), Path(work) / "kin.zarr")
        shape = Path(work) / "shape.json"
        shape.write_text(json.dumps(as_config(layers, width, cache.recipe.teacher_heads, 4 * width)))
        vocabulary = choose_vocabulary("trimmed", [other])
        student = new_student(
            choose_shape(str(shape), other.recipe, len(vocabulary)), [other], vocabulary, 0.0, 0, "start"
        )
        unknown = int(load_tokenizer(other.tokenizer_folder).unk_token_id)
        found = {"dense_kl_before": dense_measures(student.eval(), vocabulary, unseen, unknown)["dense_kl"]}
        config = StudentConfig(
            Path(work) / "student", student=str(shape), steps=steps, validate_steps=steps, dtype="float32"
        )
        result = distill([other], config)
    return found | {"kl_before": result.before.kl, "kl": result.after.kl}


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--shared", type=click.Path(exists=True, path_type=Path), required=True, help="The shared data.")
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="Cache and results, to continue from.")
@click.option("--language", default="kin", show_default=True)
@click.option("--tokens", default=400_000, show_default=True)
@click.option("--steps", default=300, show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(shared: Path, folder: Path, language: str, tokens: int, steps: int, threads: int) -> None:
    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    source = str(shared / "teacher")
    cache = cache_of("default", language, shared, source, folder, tokens)
    unseen = unseen_text(language, shared, source, cache.vocabulary.id, 200)
    fits = Fits(load_teacher(source), cache, WIDE[1])
    for way in Fits.ways:
        name = way.__name__
        asked = {"language": language, "tokens": tokens, "steps": steps, "threads": threads}
        found = finished(
            folder / f"{language}-fit-{named(name)}.json",
            asked,
            partial(measured, partial(way, fits), cache, unseen, steps),
        )
        print(f"{name:<16}", "  ".join(f"{key} {value:.3f}" for key, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
