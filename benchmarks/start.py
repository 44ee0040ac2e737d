"""Measure what a student gains from beginning with its teacher's layers, and which shape and settings gain most.

Every finished training leaves a JSON file in the folder and is not repeated when the command is given again. Students
of one shape and vocabulary take equally long for a step, whatever they begin with.

    python benchmarks/start.py --shared ../shared --folder start
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from quality import cache_of, finished, named
from quality_arms import PLAIN
from quality_measures import Unseen, dense_measures, unseen_text

from cache_tools import Cache
from cache_tools.text.tokenizer import load_tokenizer
from comet.distillation import distill
from comet.preparation import choose_vocabulary
from comet.settings import StudentConfig
from comet.student.model import new_student
from comet.student.shape import choose_shape
from comet.train.objective import DEFAULT, Objective, Schedule, Steps

NO_ATTENTION = replace(DEFAULT, name="no attention", attention_weight=0.0)
LITTLE_ATTENTION = replace(DEFAULT, name="attention 0.3", attention_weight=0.3)
CHANGED = (
    LITTLE_ATTENTION,
    replace(DEFAULT, name="attention 3", attention_weight=3.0),
    replace(DEFAULT, name="attention 1 to 0", attention_weight=Schedule(1.0, 0.0)),
    replace(DEFAULT, name="attention of the last layer", layer_map=((-1, -1),)),
    replace(DEFAULT, name="hard labels 0.1", hard_weight=0.1),
    replace(DEFAULT, name="hard labels 0.5", hard_weight=0.5),
    replace(DEFAULT, name="dropout 0.1", dropout=0.1),
)
"""The default objective, changed in one thing."""
HOT = replace(DEFAULT, name="temperature 2", temperature=2.0)
COOLING = replace(DEFAULT, name="temperature 2, then 1", temperature=Steps(((0.0, 2.0), (0.5, 1.0))))


@dataclass(frozen=True)
class Training:
    """One training: a shape as layers × width (heads of the teacher), its start, and how long: in steps, or in epochs,
    validated after each, and given up as by default."""

    shape: tuple[int, int]
    steps: int | None = None
    init: str = "start"
    vocabulary: str = "trimmed"
    rate: float | None = None
    objective: Objective = DEFAULT
    heads: int | None = None
    seed: int = 0
    epochs: float | None = None
    cache: str = "default"  # a key of CACHES

    @property
    def name(self) -> str:
        layers, width = self.shape
        parts = [f"{layers}x{width}", self.vocabulary, self.init]
        parts.append(f"{self.steps} steps" if self.epochs is None else f"{self.epochs:g} epochs")
        if self.rate is not None:
            parts.append(f"rate {self.rate:g}")
        if self.heads is not None:
            parts.append(f"{self.heads} heads")
        if self.objective is not DEFAULT:
            parts.append(self.objective.name)
        if self.seed:
            parts.append(f"seed {self.seed}")
        if self.cache != "default":
            parts.append(self.cache)
        return " ".join(parts)


WIDE, SMALL, NANO = (6, 128), (6, 96), (6, 32)
ATTENTION_CACHES = (
    "default", "whole maps", "12 keys", "8 keys", "one query in 4, 8 keys", "one query in 16", "one query in 32",
)  # fmt: skip
PARTS: dict[str, list[Training]] = {
    "wide": [Training(WIDE, 300, init, "full") for init in ("start", "cache")],
    "small": [Training(SMALL, 900, init) for init in ("start", "cache")] + [Training(SMALL, 900, objective=PLAIN)],
    "long": [Training(WIDE, 1500, init, "full") for init in ("start", "cache")]
    + [Training(SMALL, 5000, init) for init in ("start", "cache")]
    + [Training(WIDE, 5000, init, "full") for init in ("start", "cache")],
    "epochs": [Training(SMALL, epochs=epochs) for epochs in (5, 15)],
    "rate": [Training(WIDE, 300, rate=rate) for rate in (5e-4, 7e-4, 1e-3)]
    + [Training(SMALL, 900, rate=rate) for rate in (7e-4, 1e-3, 1.5e-3, 2e-3)]
    + [Training((6, 48), 900, rate=rate) for rate in (1e-3, 2e-3, 4e-3)],
    "attention": [Training(SMALL, 900, objective=objective) for objective in (NO_ATTENTION, LITTLE_ATTENTION)]
    + [Training(SMALL, 900, cache=cache) for cache in ATTENTION_CACHES],
    "views": [Training(SMALL, 900, cache="four views")]
    + [Training(SMALL, 3000, cache=cache) for cache in ("default", "four views", "sample of 512")],
    "objective": [Training(SMALL, 900, objective=objective, cache="four views") for objective in (DEFAULT, *CHANGED)]
    + [Training(SMALL, 900, objective=objective, cache="four views, T = 1 and 2") for objective in (HOT, COOLING)],
    "shapes": [Training(shape, 900) for shape in ((4, 112), (3, 120), (2, 136))]
    + [Training(shape, 900) for shape in ((6, 64), (4, 72), (3, 80))]
    + [Training(shape, 900) for shape in ((6, 40), (3, 48))],
}


def as_config(layers: int, width: int, heads: int, neurons: int) -> dict[str, int]:
    """Return the fields of a config that give a student's shape."""
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    return dict(zip(names, (layers, width, heads, neurons), strict=True))


def trained(training: Training, cache: Cache) -> dict[str, Any]:
    """Return the measures of a training."""
    layers, width = training.shape
    with tempfile.TemporaryDirectory() as work:
        shape = Path(work) / "shape.json"
        heads = training.heads or cache.recipe.teacher_heads
        shape.write_text(json.dumps(as_config(layers, width, heads, 4 * width)))
        config = StudentConfig(
            Path(work) / "student", student=str(shape), vocabulary=training.vocabulary, init=training.init,
            objective=training.objective, steps=training.steps, epochs=training.epochs,
            learning_rate=training.rate, seed=training.seed,
            validate_steps=None if training.steps is None else max(training.steps // 5, 100), dtype="float32",
        )  # fmt: skip
        result = distill([cache], config)
    return {
        "parameters": result.parameters, "smaller": 1 - result.parameters / result.teacher_parameters,
        "kl_before": result.before.kl, "kl": result.after.kl, "agreement": result.after.agreement,
        "accuracy": result.after.accuracy, "best_step": result.best_step, "training_seconds": result.seconds,
    }  # fmt: skip


def at_full_width(cache: Cache, shared: Path, language: str, teacher: str) -> float:
    """Return the dense KL, among the tokens of the corpus, of a student of all layers at full width, untrained, on the
    unseen rows whose tokens all occur in the corpus."""
    recipe = cache.recipe
    vocabulary = choose_vocabulary("trimmed", [cache])
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "whole.json"
        sizes = len(recipe.start_layers), recipe.start_width, recipe.teacher_heads, recipe.start_neurons
        path.write_text(json.dumps(as_config(*sizes)))
        shape = choose_shape(str(path), recipe, len(vocabulary))
    student = new_student(shape, [cache], vocabulary, 0.0, 0, "start").eval()
    unknown = load_tokenizer(cache.tokenizer_folder).unk_token_id
    unseen = unseen_text(language, shared, teacher, cache.vocabulary.id, 400)
    held = torch.isin(unseen.inputs, torch.cat([unseen.seen, torch.tensor(recipe.special_ids)])).all(1)  # [R]
    of_held = held.repeat_interleave(unseen.target.sum(1))  # [T]
    inputs, target = unseen.inputs[held], unseen.target[held]
    unseen = Unseen(inputs, target, unseen.truth[of_held], unseen.logprob[of_held], unseen.seen)
    return dense_measures(student, vocabulary, unseen, int(unknown))["dense_kl"]


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--shared", type=click.Path(exists=True, path_type=Path), required=True, help="The shared data.")
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="Cache and results, to continue from.")
@click.option("--language", default="kin", show_default=True)
@click.option("--tokens", default=400_000, show_default=True)
@click.option("--part", "parts", multiple=True, type=click.Choice(list(PARTS)), help="Only these.  [default: all]")
@click.option("--threads", default=1, show_default=True)
def main(shared: Path, folder: Path, language: str, tokens: int, parts: Sequence[str], threads: int) -> None:
    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    teacher = str(shared / "teacher")
    held = partial(cache_of, language=language, shared=shared, teacher=teacher, folder=folder, tokens=tokens)
    if not parts:
        whole = at_full_width(held("default"), shared, language, teacher)
        print(f"all layers at full width, untrained: dense KL {whole:.2e}")
    asked = {"language": language, "tokens": tokens, "threads": threads}
    for training in dict.fromkeys(training for part in parts or PARTS for training in PARTS[part]):
        path = folder / f"{language}-{named(training.name)}.json"
        found = finished(path, asked, lambda t=training: trained(t, held(t.cache)))  # type: ignore[misc]
        cells = (f"{name} {value:.3f}" for name, value in found.items() if name not in ("parameters", "best_step"))
        print(f"{training.name:<44} {found['parameters']:>9,} parameters  {'  '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
