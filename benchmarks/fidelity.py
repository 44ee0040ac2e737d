"""Compare ways to keep a teacher's signals: how much of the teacher each preserves, and the bytes that it takes.

The gradient that a kept signal gives a half-trained student is compared with that of the whole signal: over all
parameters and a batch of 4,096 targets, and per target on the logits. Real text of five languages, a real teacher, the
package's own code for what a cache can hold. Prints tables, writes JSON and SVG.

    python benchmarks/fidelity.py --shared ../shared --output fidelity.json
"""

import json
import lzma
import math
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from charts import draw
from fidelity_measures import angle, bytes_per_position, validation_batches
from kept_attention import attention_kept
from kept_signals import (
    Portion,
    Way,
    full,
    half_and_half,
    in_rounds,
    random_sampling,
    residual_to_truth,
    similarity_order,
    systematic_counts,
    threshold_in_order,
    threshold_sample,
    topk_and_tail,
    topk_renormalised,
)
from quality_arms import PLAIN, Arm, teacher_in_the_loop, train
from torch import Tensor
from transformers import XLMRobertaForMaskedLM

from cache_tools import Cache, build_cache
from cache_tools.settings import BuildSettings
from cache_tools.teacher.forward import seen_mask
from cache_tools.teacher.head import BlockedHead
from cache_tools.teacher.model import Teacher, load_teacher
from comet.report.analysis import calibration, expected_calibration_error
from comet.train.distiller import Distiller
from comet.train.objective import DEFAULT

LANGUAGES = ("kin", "swa", "hau", "ibo", "yor")
KEPT = (8, 16, 32, 64)
DRAWN = (16, 32, 64, 128, 256)  # at most so many tokens: fewer where the teacher is sure
SURE = 0.25  # the share of the targets at which the teacher is surest
DRAWS = 3
ROUNDS = 4


@dataclass(frozen=True)
class Scene:
    """A teacher and a half-trained student before the same rows, and the student's gradient of the whole signal."""

    portions: list[Portion]
    graphs: list[Tensor]  # the student's logits [T, V] of each portion, with their graph
    parameters: list[Tensor]

    @property
    def targets(self) -> int:
        return sum(len(portion.truth) for portion in self.portions)

    def part(self, chosen: list[Tensor]) -> "Scene":
        """Only the targets that are chosen, [T] bool of each portion."""
        return Scene(
            [
                replace(
                    portion, features=portion.features[mask], logprob=portion.logprob[mask],
                    logits=portion.logits[mask].detach().requires_grad_(), truth=portion.truth[mask],
                )
                for portion, mask in zip(self.portions, chosen, strict=True)
            ],
            [graph[mask] for graph, mask in zip(self.graphs, chosen, strict=True)],
            self.parameters,
        )  # fmt: skip

    def gradient(self, by_logits: list[Tensor]) -> Tensor:
        """[parameters] from the gradient by the logits [T, V] of each portion."""
        total = torch.zeros(sum(p.numel() for p in self.parameters))
        for logits, outer in zip(self.graphs, by_logits, strict=True):
            parts = torch.autograd.grad(logits, self.parameters, outer, retain_graph=True)
            total += torch.cat([part.flatten() for part in parts])
        return total


def mixed_text(shared: Path, path: Path, lines: int) -> Path:
    """The first lines of all five languages, in turn."""
    texts = [
        lzma.decompress((shared / f"data/text/{language}.txt.xz").read_bytes()).decode().split("\n")[:lines]
        for language in LANGUAGES
    ]
    path.write_text("\n".join(line for turn in zip(*texts, strict=True) for line in turn), encoding="utf-8")
    return path


def set_the_scene(cache: Cache, teacher: Teacher, student: XLMRobertaForMaskedLM, targets: int) -> Scene:
    distiller = Distiller(student.eval(), cache.recipe, DEFAULT)
    head = BlockedHead(teacher.head, seen_mask(cache.vocabulary.id, cache.recipe.vocab_size))
    generator = torch.Generator().manual_seed(0)
    portions, graphs = [], []
    for batch in validation_batches(cache, targets):
        mask = torch.arange(batch["input_ids"].shape[1]) < batch["length"][:, None]
        with torch.no_grad():
            hidden = teacher.hidden_states(batch["input_ids"], mask, None)
            features = teacher.transform(hidden[batch["target_row"], batch["target_position"]])
            logprob = teacher.head.logits(features).float().log_softmax(1)
        weight, bias = distiller.output_layer()
        graphs.append(torch.addmm(bias, distiller.features(batch)[0], weight.T))
        leaf = graphs[-1].detach().requires_grad_()
        portions.append(Portion(features, head, logprob, leaf, batch["target_id"], generator))
    return Scene(portions, graphs, list(student.parameters()))


def by_logits(portion: Portion, way: Way, k: int, temperature: float) -> tuple[Tensor, Any]:
    kept = way(portion, k, temperature)
    return torch.autograd.grad(kept.loss.sum(), portion.logits)[0], kept


@dataclass(frozen=True)
class Whole:
    """What the whole signal gives: its gradient by the logits of each portion and by parameters, and its loss [T]."""

    by_logits: list[Tensor]
    by_parameters: Tensor
    loss: Tensor


def whole_signal(scene: Scene, temperature: float) -> Whole:
    gradients, kepts = zip(*(by_logits(portion, full, 0, temperature) for portion in scene.portions), strict=True)
    return Whole(list(gradients), scene.gradient(list(gradients)), torch.cat([kept.loss.detach() for kept in kepts]))


def measure(scene: Scene, way: Way, k: int, temperature: float, whole: Whole) -> dict[str, float]:
    """One draw of one way, against the whole signal."""
    gradients, kepts = zip(*(by_logits(p, way, k, temperature) for p in scene.portions), strict=True)
    total = scene.gradient(list(gradients))
    ours, theirs = torch.cat(gradients), torch.cat(whole.by_logits)
    size = theirs.norm(dim=1)
    cosine = torch.nn.functional.cosine_similarity(ours, theirs)
    loss = torch.cat([kept.loss.detach() for kept in kepts])
    best, confidence = (torch.cat([getattr(kept, name) for kept in kepts]) for name in ("best", "confidence"))
    correct = best == torch.cat([p.truth for p in scene.portions])
    bins = calibration(confidence.double().clamp(max=1.0).numpy(), correct.numpy())
    return {
        "bytes": bytes_per_position([kept.arrays for kept in kepts], scene.targets),
        "angle": angle(total, whole.by_parameters),
        "error": ((total - whole.by_parameters).norm() / whole.by_parameters.norm()).item(),
        "angle_per_target": cosine.clamp(-1, 1).acos().rad2deg().mean().item(),
        "error_per_target": ((ours - theirs).norm(dim=1) / size).mean().item(),
        "kl_off": (loss.mean() - whole.loss.mean()).item(),
        "calibration_error": expected_calibration_error(bins),
    }


def logits_kept(scene: Scene, teacher: Teacher, draws: int) -> list[dict[str, Any]]:
    """Every way with every k; at temperature 2 and where the teacher is surest those that matter: medians of draws."""
    order = similarity_order(teacher.head.weight.float())
    main: dict[str, tuple[Way, tuple[int, ...], int]] = {
        "top-k + tail bucket": (topk_and_tail, KEPT, 1),
        "random sampling": (random_sampling, DRAWN, draws),
        "threshold sample": (threshold_sample, DRAWN, draws),
    }
    others: dict[str, tuple[Way, tuple[int, ...], int]] = {
        "top-k renormalised": (topk_renormalised, KEPT, 1),
        "top-k, residual to the true token": (residual_to_truth, KEPT, 1),
        "half top-k, half draws": (half_and_half, KEPT, draws),
        "evenly spaced draws, counted": (systematic_counts, DRAWN, draws),
        "threshold sample, similar tokens in a row": (threshold_in_order(order), DRAWN, draws),
        f"threshold samples, {ROUNDS} for {ROUNDS} epochs": (in_rounds(threshold_sample, ROUNDS), DRAWN[1:4], draws),
    }
    best = [portion.logprob.amax(1) for portion in scene.portions]
    limit = torch.cat(best).quantile(1 - SURE)
    surest = scene.part([portion >= limit for portion in best])
    results = []
    for where, part, temperature, ways in (
        ("all targets", scene, 1.0, main | others),
        ("all targets", scene, 2.0, main),
        ("surest targets", surest, 1.0, main),
    ):
        whole = whole_signal(part, temperature)
        for name, (way, ks, times) in ways.items():
            for k in ks:
                found = [measure(part, way, k, temperature, whole) for _ in range(times)]
                medians = {column: statistics.median(one[column] for one in found) for column in found[0]}
                spread = max(one["angle"] for one in found) - min(one["angle"] for one in found)
                results.append(
                    {"where": where, "way": name, "temperature": temperature, "k": k, **medians, "angle_spread": spread}
                )
                print(line_of(results[-1]), flush=True)
    results += at_equal_bytes(results)
    return results


def at_equal_bytes(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The threshold sample's angle as a share of random sampling's, which is interpolated to its bytes (both axes
    logarithmic)."""
    lines = []
    for where, temperature in dict.fromkeys((one["where"], one["temperature"]) for one in results):
        here = [one for one in results if (one["where"], one["temperature"]) == (where, temperature)]
        random = [(one["bytes"], one["angle"]) for one in here if one["way"] == "random sampling"]
        by_bytes, by_angle = np.log([b for b, _ in random]), np.log([a for _, a in random])
        for one in here:
            if one["way"] == "threshold sample" and random[0][0] <= one["bytes"] <= random[-1][0]:
                theirs = math.exp(np.interp(math.log(one["bytes"]), by_bytes, by_angle))
                lines.append(
                    {
                        "where": where, "way": "threshold ÷ random at equal bytes", "temperature": temperature,
                        "k": one["k"], "bytes": one["bytes"], "ratio": one["angle"] / theirs,
                    }
                )  # fmt: skip
                print(f"{where}, T = {temperature:g}: {one['bytes']:.0f} bytes, ratio {lines[-1]['ratio']:.2f}")
    return lines


def line_of(found: dict[str, Any]) -> str:
    return (
        f"T = {found['temperature']:g}  {found['where']}  {found['way']:<44} k = {found['k']:<4} "
        f"{found['bytes']:6.1f} bytes  angle {found['angle']:6.2f}° (± {found['angle_spread'] / 2:.2f})  "
        f"error {found['error']:.3f}  per target {found['angle_per_target']:5.1f}°  KL off {found['kl_off']:+.4f}  "
        f"ECE {found['calibration_error']:.3f}"
    )


def plot(results: dict[str, Any], folder: Path) -> None:
    """fidelity-logits.svg and fidelity-attention.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    logits: dict[str, list[tuple[float, float]]] = {}
    for one in results["logits"]:
        if one["temperature"] == 1.0 and one["where"] == "all targets" and "angle" in one:
            logits.setdefault(one["way"], []).append((one["bytes"], one["angle"]))
    title = f"Gradient of {results['targets']:,} targets"
    draw(folder / "fidelity-logits.svg", title, logits, "bytes per target", "degrees to that of all logits")
    attention: dict[str, list[tuple[float, float]]] = {}
    for one in results["attention"]:
        attention.setdefault(f"one query in {one['every']}", []).append(
            (one["bytes_per_token"], max(one["angle"], 0.01))
        )
    title = "Gradient of the attention loss"
    draw(folder / "fidelity-attention.svg", title, attention, "bytes per token", "degrees to that of whole maps")


@click.command(help=__doc__.split("\n")[0])
@click.option(
    "--shared", type=click.Path(exists=True, path_type=Path), required=True, help="Folder of the shared data."
)
@click.option("--teacher", help="Folder of another teacher of the same text.  [default: the shared one]")
@click.option("--output", type=click.Path(path_type=Path), default="fidelity.json", show_default=True)
@click.option("--targets", default=4096, show_default=True)
@click.option("--steps", default=200, show_default=True, help="Of the half-trained student.")
@click.option(
    "--learnt-from",
    type=click.Choice(["teacher", "text"]),
    default="teacher",
    show_default=True,
    help="What half-trained the student: dense logits, or true tokens. Never one of the signals that are compared.",
)
@click.option("--draws", default=DRAWS, show_default=True)
def main(
    shared: Path, teacher: str | None, output: Path, targets: int, steps: int, learnt_from: str, draws: int
) -> None:
    started = time.monotonic()
    source = teacher or str(shared / "teacher")
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        text = mixed_text(shared, folder / "text.txt", 4000)
        settings = BuildSettings(folder / "mixed.zarr", "mul", source, (str(text),), max_tokens=400_000, views=1)
        cache = build_cache(settings)
        loaded = load_teacher(source)
        arm = Arm(learnt_from, "", DEFAULT if learnt_from == "teacher" else PLAIN, online=learnt_from == "teacher")
        student, _ = train(arm, cache, lambda n: teacher_in_the_loop(loaded, cache, n), "small", steps, 0, folder)
        scene = set_the_scene(cache, loaded, student, targets)
        mass = torch.cat([p.logprob.topk(64, dim=1).values.exp().sum(1) for p in scene.portions]).mean().item()
        results = {
            "targets": scene.targets, "student_steps": steps, "student_learnt_from": learnt_from, "draws": draws,
            "teacher_top64_mass": mass,
            "logits": logits_kept(scene, loaded, draws), "attention": attention_kept(cache, loaded, student, targets),
            "minutes": round((time.monotonic() - started) / 60, 1),
        }  # fmt: skip
    plot(results, output.parent)
    output.write_text(json.dumps(results, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
