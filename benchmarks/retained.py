"""Measure how much of their teacher's scores on tasks students retain, at two sizes, and what start and cache each add.

Every student trains for the same time of the processor, whatever else the machine does: with the cache; from the same
start, but on labels alone; and on labels alone from a random body on the teacher's embeddings. Students and scores stay
in the folder, and the command continues with what is missing; several processes may work on one folder, each on its own
languages.

    python benchmarks/retained.py --shared ../shared --folder retained --minutes 20
"""

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from quality import cache_of
from quality_arms import PLAIN

from cache_tools import Cache
from comet.distillation import distill
from comet.evaluate.evaluation import evaluate
from comet.evaluate.settings import EvaluationSettings
from comet.settings import StudentConfig
from comet.train.objective import DEFAULT, Objective

PROBE_STEPS = 10, 50
VALIDATIONS = 8
LANGUAGES = ("kin", "swa", "hau", "ibo", "yor")
TASKS = ("afrisenti", "masakhaner")


@dataclass(frozen=True)
class Arm:
    """One way to spend the time: what a student begins with, and what it learns from."""

    name: str
    init: str
    objective: Objective


ARMS = (Arm("cache", "start", DEFAULT), Arm("start alone", "start", PLAIN), Arm("plain", "cache", PLAIN))


def trained(arm: Arm, cache: Cache, size: str, output: Path, seconds: float) -> Path:
    """Return the folder of a student of this size, trained for so many seconds of the processor unless it is there."""
    if output.exists():
        return output

    def config(folder: Path, steps: int, every: int) -> StudentConfig:
        return StudentConfig(
            folder, student=size, init=arm.init, objective=arm.objective, steps=steps, validate_steps=every
        )

    def processor_seconds(steps: int) -> float:
        with tempfile.TemporaryDirectory() as work:
            started = time.process_time()
            distill([cache], config(Path(work) / "probe", steps, steps))
            return time.process_time() - started

    around, whole = (processor_seconds(steps) for steps in PROBE_STEPS)
    a_step = (whole - around) / (PROBE_STEPS[1] - PROBE_STEPS[0])
    steps = int(seconds / a_step)
    print(f"{output.name}: {steps} steps of {a_step:.3f} s of the processor", flush=True)
    result = distill([cache], config(output, steps, max(steps // VALIDATIONS, 1)))
    measured = {
        "kl": result.after.kl,
        "seconds": result.seconds,
        "steps": result.steps,
        "parameters": result.parameters,
    }
    output.with_suffix(".json").write_text(json.dumps(measured))
    return output


def scores(
    models: Sequence[str], task: str, language: str, shared: Path, folder: Path, seeds: int, epochs: int
) -> list[tuple[str, float]]:
    """Return the mean score of each model, by its folder's name."""
    settings = EvaluationSettings(
        models=tuple(models), task=task, language=language, data=shared / "data" / task,
        results=folder / f"eval-{task}-{language}.json", seeds=seeds, epochs=epochs, device="cpu",
    )  # fmt: skip
    found = evaluate(settings, say=lambda line: print(line, flush=True)).models
    return [(Path(model.name).name, sum(run.score for run in model.runs) / len(model.runs)) for model in found]


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--shared", type=click.Path(exists=True, path_type=Path), required=True, help="The shared data.")
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="Caches, students and scores.")
@click.option("--language", "languages", multiple=True, default=LANGUAGES, show_default=True)
@click.option("--size", "sizes", multiple=True, default=("small", "nano"), show_default=True)
@click.option("--task", "tasks", multiple=True, default=TASKS, show_default=True)
@click.option(
    "--arm",
    "arms",
    multiple=True,
    type=click.Choice([arm.name for arm in ARMS]),
    default=[arm.name for arm in ARMS],
    show_default=True,
    help="What the students begin with and learn from.",
)
@click.option("--tokens", default=400_000, show_default=True)
@click.option("--views", type=int, help="Of the caches.  [default: as a build chooses them]")
@click.option("--minutes", default=20.0, show_default=True, help="Of training each student, on all threads.")
@click.option("--seeds", default=3, show_default=True, help="Of fine-tuning.")
@click.option("--epochs", default=3, show_default=True, help="Of fine-tuning.")
@click.option("--threads", default=2, show_default=True)
def main(
    shared: Path, folder: Path, languages: Sequence[str], sizes: Sequence[str], tasks: Sequence[str],
    arms: Sequence[str], tokens: int, views: int | None, minutes: float, seeds: int, epochs: int, threads: int,
) -> None:  # fmt: skip
    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    teacher = str(shared / "teacher")
    seconds = 60 * minutes * threads

    retained: dict[tuple[str, str], list[float]] = {}
    for language in languages:
        cache = cache_of("default", language, shared, teacher, folder, tokens, views)
        students = [
            trained(arm, cache, size, folder / f"{language}-{size}-{arm.name.replace(' ', '-')}", seconds)
            for size in sizes
            for arm in ARMS
            if arm.name in arms
        ]
        for task in tasks:
            (_, reference), *others = scores(
                [teacher, *map(str, students)], task, language, shared, folder, seeds, epochs
            )
            for name, score in others:
                print(
                    f"{language} {task} {name:<24} {score:.3f}, {score / reference:.1%} of {reference:.3f}", flush=True
                )
                retained.setdefault((task, name.removeprefix(f"{language}-")), []).append(score / reference)
    for (task, name), shares in retained.items():
        print(f"{task} {name}: {sum(shares) / len(shares):.1%} of the teacher's, mean of {len(shares)} languages")


if __name__ == "__main__":
    main()
