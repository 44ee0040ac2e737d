"""Compare students from the cache with students that have the teacher in the loop.

The same student, the same rows in the same order and as many steps, for every kind of signal, with paired seeds;
measured densely on unseen text, and some of them after fine-tuning on AfriSenti.

Every finished training leaves a JSON file in the folder, and is not repeated when the command is given again. Several
processes may work on one folder, each on its own seeds (`--seed 0 --seed 1`).

    python benchmarks/quality.py --shared ../shared --folder quality
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache as remembered
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from quality_arms import ARMS, CACHES, Arm, TeacherInTheLoop, teacher_in_the_loop, train
from quality_measures import (
    EPOCHS,
    Unseen,
    dense_measures,
    on_task,
    resampled_scores,
    retained_gain,
    training_lines,
    unseen_text,
)
from transformers import AutoModelForMaskedLM, AutoTokenizer

from cache_tools import Cache, build_cache, open_cache
from cache_tools.settings import BuildSettings
from cache_tools.signals import ATTENTION
from cache_tools.teacher.model import load_teacher
from cache_tools.text.tokenizer import load_tokenizer
from comet.evaluate.datasets import TaskData, load_task
from comet.evaluate.tasks import find_task
from comet.student.vocabulary import student_tokenizer

COLUMNS = ("dense_kl", "loss", "accuracy", "calibration_error", "score")
QUICK = ("plain", "online", "default", "no attention", "best 16", "sample of 32")
Results = dict[tuple[str, int], dict[str, Any]]


def cache_of(
    name: str, language: str, shared: Path, teacher: str, folder: Path, tokens: int, views: int | None = 1
) -> Cache:
    """One of CACHES, all of the same rows and masks, built if it is not there yet. No views: as many as by default."""
    out = folder / f"{language}-{named(name)}.zarr"
    if not out.exists():
        text = folder / f"{language}.txt"
        if not text.exists():
            text.write_text(training_lines(shared, language), encoding="utf-8")
        settings = BuildSettings(
            out=out, language=language, teacher=teacher, text=(str(text),), max_tokens=tokens, rows_per_shard=256
        )
        build_cache(replace(settings, **{"views": views} | CACHES[name]))
    return open_cache(out)


def sharpened(source: str, factor: float, folder: Path) -> str:
    """Return the folder of a teacher whose logits are the source's times a factor, written if it is not there yet."""
    out = folder / f"teacher-times-{factor:g}"
    if not out.exists():
        model = AutoModelForMaskedLM.from_pretrained(source, dtype=torch.float32)
        with torch.no_grad():
            for name in ("weight", "bias"):
                getattr(model.lm_head.layer_norm, name).mul_(factor)
            model.lm_head.bias.mul_(factor)
        model.save_pretrained(out)
        AutoTokenizer.from_pretrained(source).save_pretrained(out)
    return str(out)


def named(text: str) -> str:
    """A name as part of a file name."""
    return "".join(c if c.isalnum() else "-" for c in text)


def bytes_per_token(cache: Cache) -> tuple[float, float]:
    """Bytes of logits and of attention per token of text, as they lie on the disk."""

    def size(name: str) -> int:
        return sum(path.stat().st_size for path in (cache.root / "train" / name / "c").rglob("*") if path.is_file())

    recipe = cache.recipe
    tokens = (
        recipe.views
        * int(cache.provenance["text_tokens"])
        * recipe.train_rows
        / (recipe.train_rows + recipe.validation_rows)
    )
    logits = sum(size(n) for n in cache.extent.arrays if n.startswith(("topk", "tail", "sample", "entropy")))
    return logits / tokens, sum(map(size, ATTENTION.arrays)) / tokens


def finished(path: Path, asked: dict[str, Any], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a JSON file holds; if it is not there, what the work finds."""
    if not path.exists():
        started = time.monotonic()
        found = work()
        path.write_text(json.dumps({"asked": asked, "found": found | {"seconds": time.monotonic() - started}}))
    stored = json.loads(path.read_text())
    if stored["asked"] != asked:
        raise SystemExit(f"{path}: measured with {stored['asked']}, now {asked}; take another --folder")
    found: dict[str, Any] = stored["found"]
    return found


def table(results: Results, arms: Sequence[str], sizes: dict[str, tuple[float, float]]) -> str:
    """Mean ± standard deviation over the seeds; the KL's ratio to the online student, and the score's difference to
    the plain one, seed by seed."""
    lines = []
    for arm in arms:
        of_arm = {seed: found for (name, seed), found in results.items() if name == arm}
        if not of_arm:
            continue
        cells = [
            arm.ljust(33),
            "logits {:4.1f} B, attention {:4.1f} B a token".format(*sizes[arm]),
            f"{len(of_arm)} seeds",
        ]
        for column in COLUMNS:
            values = [found[column] for found in of_arm.values() if column in found]
            cells.append(f"{column} {spread(values)}" if values else "")
        for other, column, sign in (("online", "dense_kl", "÷"), ("plain", "loss", "−"), ("plain", "score", "−")):
            both = [
                (found[column], results[other, seed][column])
                for seed, found in of_arm.items()
                if (other, seed) in results and column in found and column in results[other, seed]
            ]
            if both and arm != other:
                values = [mine / theirs if sign == "÷" else mine - theirs for mine, theirs in both]
                cells.append(f"{column} {sign} {other} {spread(values)}")
        lines.append("  ".join(cells))
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.4f} ± {deviation:.4f}"


def scores_by_arm(data: TaskData, results: Results, teacher: list[str]) -> dict[str, np.ndarray]:
    """`resampled_scores` of every arm that was fine-tuned, plain apart."""
    predicted: dict[str, list[str]] = {}
    for (arm, _), found in results.items():
        if "predicted" in found:
            predicted.setdefault(arm, []).append(found["predicted"])
    plain = predicted.pop("plain", [])
    return {arm: resampled_scores(data, plain, of_arm, teacher) for arm, of_arm in predicted.items() if plain}


def retained_line(arm: str, scores: Sequence[np.ndarray]) -> str:
    """What an arm retains of the teacher's score, and of its gain over the plain student, over all languages given."""
    share, gain = ("{:.1%} ({:.1%} to {:.1%})".format(*of) for of in retained_gain(np.stack(scores)))
    return f"{arm:<33} retains {share} of the teacher's score, {gain} of its gain over plain"


@dataclass(frozen=True)
class Experiment:
    """Everything that the arms of one language have in common."""

    language: str
    folder: Path
    source: str  # folder of the teacher
    student: str
    steps: int
    epochs: int  # of fine-tuning
    asked: dict[str, Any]
    caches: dict[str, Cache]
    unseen: Unseen
    data: TaskData
    online: Callable[[int], TeacherInTheLoop]

    def result(self, arm: Arm, seed: int) -> dict[str, Any]:
        """What came of one training, now or when the command was given before."""
        fine_tuned = {"epochs": self.epochs} if arm.fine_tuned else {}
        path = self.folder / f"{self.language}-{named(arm.name)}-{seed}.json"
        return finished(path, self.asked | fine_tuned, lambda: self.trained(arm, seed))

    def teacher_result(self, seed: int) -> dict[str, Any]:
        path = self.folder / f"{self.language}-teacher-{seed}.json"
        return finished(
            path, self.asked | {"epochs": self.epochs}, lambda: on_task(self.source, self.data, seed, self.epochs)
        )

    def trained(self, arm: Arm, seed: int) -> dict[str, Any]:
        cache = self.caches[arm.cache]
        with tempfile.TemporaryDirectory() as work:
            model, vocabulary = train(arm, cache, self.online, self.student, self.steps, seed, Path(work))
            found: dict[str, Any] = {"parameters": model.num_parameters()}
            unknown = load_tokenizer(cache.tokenizer_folder).unk_token_id
            found |= dense_measures(model, vocabulary, self.unseen, int(unknown))
            if arm.fine_tuned and self.epochs:
                folder = Path(work) / "student"
                model.save_pretrained(folder)
                student_tokenizer(cache, vocabulary).save_pretrained(folder)
                found |= on_task(str(folder), self.data, seed, self.epochs)
        return found


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--shared", type=click.Path(exists=True, path_type=Path), required=True, help="The shared data.")
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="Caches and results, to continue from.")
@click.option("--teacher", help="Folder of another teacher.  [default: the shared one]")
@click.option("--sharpness", default=1.0, show_default=True, help="Factor of the teacher's logits.")
@click.option("--views", type=int, help="Of the caches.  [default: as a build chooses them]")
@click.option("--language", "languages", multiple=True, default=("kin",), show_default=True)
@click.option("--student", default="auto", show_default=True)
@click.option("--tokens", default=400_000, show_default=True)
@click.option("--steps", default=600, show_default=True)
@click.option("--seed", "seeds", type=int, multiple=True, default=(0, 1, 2, 3, 4), show_default=True)
@click.option("--arm", "wanted", multiple=True, help="Only these.  [default: all]")
@click.option("--epochs", default=EPOCHS, show_default=True, help="Of fine-tuning; 0: none.")
@click.option("--quick", is_flag=True, help="Two seeds of five arms, few steps, no fine-tuning.")
def main(
    shared: Path,
    folder: Path,
    teacher: str | None,
    sharpness: float,
    views: int | None,
    languages: tuple[str, ...],
    student: str,
    tokens: int,
    steps: int,
    seeds: tuple[int, ...],
    wanted: tuple[str, ...],
    epochs: int,
    quick: bool,
) -> None:
    source = teacher or str(shared / "teacher")
    if quick:
        tokens, steps, seeds, wanted, epochs = 100_000, 150, (0, 1), wanted or QUICK, 0
    folder.mkdir(parents=True, exist_ok=True)
    if sharpness != 1:
        source = sharpened(source, sharpness, folder)
    asked = {"teacher": Path(source).name, "views": views, "student": student, "tokens": tokens, "steps": steps}
    loaded = load_teacher(source)
    arms = [arm for arm in ARMS if not wanted or arm.name in wanted]
    names = dict.fromkeys(arm.cache for arm in arms)
    by_arm: dict[str, list[np.ndarray]] = {}
    for language in languages:
        caches = {name: cache_of(name, language, shared, source, folder, tokens, views) for name in names}
        first = next(iter(caches.values()))
        if len({cache.recipe.tokens_sha256 for cache in caches.values()}) > 1:
            raise SystemExit(f"{folder}: the caches of {language} hold other rows; take another --folder")
        online = remembered(partial(teacher_in_the_loop, loaded, first))
        unseen = unseen_text(language, shared, source, first.vocabulary.id, 400)
        data = load_task(find_task("afrisenti"), language, shared / "data/afrisenti")
        experiment = Experiment(language, folder, source, student, steps, epochs, asked, caches, unseen, data, online)
        results = {(arm.name, seed): experiment.result(arm, seed) for seed in seeds for arm in arms}
        print(f"{language}, {len(unseen.truth):,} targets of unseen text, {steps} steps, seeds {seeds}")
        print(
            table(results, [arm.name for arm in arms], {arm.name: bytes_per_token(caches[arm.cache]) for arm in arms})
        )
        if epochs and any(arm.fine_tuned for arm in arms):
            teachers = [experiment.teacher_result(seed) for seed in seeds]
            print(f"teacher: score {spread([found['score'] for found in teachers])}")
            for arm, scores in scores_by_arm(data, results, [found["predicted"] for found in teachers]).items():
                by_arm.setdefault(arm, []).append(scores)
                print(retained_line(arm, [scores]))
    for arm, of_languages in by_arm.items():
        if len(of_languages) == len(languages) > 1:
            print("all languages: " + retained_line(arm, of_languages))


if __name__ == "__main__":
    main()
