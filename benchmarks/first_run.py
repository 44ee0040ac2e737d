"""Draw README's first run: the student of the sample from its cache, with the teacher in the loop, and without one.

The same shape, rows, masks and steps; KL and accuracy on the validation rows after each epoch, against seconds of
training. Needs nothing but the project.

    python benchmarks/first_run.py --draw docs/first-run.svg
"""

import tempfile
import time
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import torch
from charts import draw
from quality_arms import PLAIN, Arm, teacher_in_the_loop, train
from transformers import TrainerCallback

from cache_tools import build_cache
from cache_tools.settings import BuildSettings
from cache_tools.teacher.model import load_teacher
from comet.train.trainer import DistillationTrainer
from comet.train.validation import Validation

SAMPLE = Path(str(files("cache_tools.sample")))
ARMS = (
    Arm("from the cache", "default", vocabulary="trimmed"),
    Arm("teacher in the loop", "default", vocabulary="trimmed", online=True),
    Arm("teacher's layers, no signals", "default", PLAIN, vocabulary="trimmed"),
    Arm("no teacher", "default", PLAIN, vocabulary="trimmed", init="random"),
)


@dataclass
class Curve(TrainerCallback):
    """Seconds of training, without validation, and the validation after each epoch."""

    trainer: DistillationTrainer
    points: list[tuple[float, Validation]] = field(default_factory=list)
    seconds: float = 0.0
    since: float = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.measure()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds += time.monotonic() - self.since
        self.measure()

    def measure(self) -> None:
        self.points.append((self.seconds, self.trainer.validate()))
        self.since = time.monotonic()


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--steps", type=int, default=400, show_default=True)
@click.option("--draw", "picture", type=click.Path(path_type=Path), help="Write the curves of the KL as a picture.")
def main(steps: int, picture: Path | None) -> None:
    settings = BuildSettings(Path("unused"), "kin", str(SAMPLE / "teacher"), (str(SAMPLE / "text.txt"),), device="cpu")
    curves: dict[str, list[tuple[float, Validation]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        cache = build_cache(replace(settings, out=Path(folder) / "kin.zarr"))
        print(f"build: {time.monotonic() - started:.0f} s; {torch.get_num_threads()} threads")
        teacher = load_teacher(str(SAMPLE / "teacher"))
        for number, arm in enumerate(ARMS):
            found: list[Curve] = []

            def watch(trainer: DistillationTrainer, found: list[Curve] = found) -> Curve:
                found.append(Curve(trainer))
                return found[0]

            online = partial(teacher_in_the_loop, teacher, cache, remembers=False)
            train(arm, cache, online, "small", steps, 0, Path(folder) / str(number), watch)
            curves[arm.name] = found[0].points
    for name, points in curves.items():
        (_, first), (seconds, last) = points[0], points[-1]
        print(
            f"{name}: {seconds:.0f} s; KL {first.kl:.3f} → {last.kl:.3f}; accuracy {first.accuracy:.1%} → "
            f"{last.accuracy:.1%}, the teacher's {last.teacher_accuracy:.1%}; same best token {last.agreement:.1%}"
        )
    if picture is not None:
        lines = {name: [(seconds, found.kl) for seconds, found in points[1:]] for name, points in curves.items()}
        draw(
            picture, "The sample's student: KL from its teacher", lines, "seconds of training", "nats, validation rows"
        )


if __name__ == "__main__":
    main()
