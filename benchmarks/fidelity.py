"""How much of the teacher each way to keep its signals keeps, against the bytes that it takes.

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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from charts import draw
from kept_signals import (
    Portion,
    Way,
    full,
    half_and_half,
    in_rounds,
    random_sampling,
    residual_to_truth,
    similarity_order,
    threshold_in_order,
    threshold_sample,
    topk_and_tail,
    topk_renormalised,
)
from numpy.typing import NDArray
from quality import PLAIN, Arm, train
from torch import Tensor
from transformers import XLMRobertaForMaskedLM

from cache_tools import Cache, build_cache
from cache_tools.pooling import AttentionCapture
from cache_tools.settings import BuildSettings
from cache_tools.store.layout import ArraySpec, encode_chunk
from cache_tools.teacher.head import BlockedHead
from cache_tools.teacher.model import Teacher, load_teacher
from cache_tools.teacher.signals import seen_mask
from comet.closeup import calibration, expected_calibration_error
from comet.data import CacheRows, collate, shards_of
from comet.distiller import Distiller
from comet.losses import attention_kl
from comet.recipes import DEFAULT

LANGUAGES = ("kin", "swa", "hau", "ibo", "yor")
KEPT = (8, 16, 24, 32, 64)
DRAWN = (16, 32, 64, 128, 256)  # with replacement: fewer tokens, and fewer bytes for each
DRAWS = 3
ROUNDS = 4
ROWS_AT_ONCE = 16
MAP_SIZES = (8, 16, 32, 64, 128)
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Scene:
    """A teacher and a half-trained student before the same rows, and the student's gradient of the whole signal."""

    portions: list[Portion]
    graphs: list[Tensor]  # the student's logits [T, V] of each portion, with their graph
    parameters: list[Tensor]

    @property
    def targets(self) -> int:
        return sum(len(portion.truth) for portion in self.portions)

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


def validation_batches(cache: Cache, targets: int) -> Iterator[Batch]:
    """Rows until there are so many targets, a few at a time; the last targets too many are left out."""
    rows = CacheRows(shards_of([cache], "validation"), list(cache.extent.arrays))
    for begin in range(0, len(rows), ROWS_AT_ONCE):
        batch = collate(rows.__getitems__(range(len(rows))[begin : begin + ROWS_AT_ONCE]))
        of_targets = ("target_row", "target_position", "target_id")
        batch |= {name: batch[name][:targets] for name in of_targets}
        yield batch
        targets -= len(batch["target_id"])
        if not targets:
            return
    raise SystemExit(f"the validation rows hold {targets} targets too few; give more lines")


def angle(a: Tensor, b: Tensor) -> float:
    """Degrees between two vectors, in a form that is exact for small angles."""
    a, b = a.double() / a.double().norm(), b.double() / b.double().norm()
    return math.degrees(2 * math.atan2((a - b).norm().item(), (a + b).norm().item()))


def by_logits(portion: Portion, way: Way, k: int, temperature: float) -> tuple[Tensor, Any]:
    kept = way(portion, k, temperature)
    return torch.autograd.grad(kept.loss.sum(), portion.logits)[0], kept


def measure(scene: Scene, way: Way, k: int, temperature: float, truth: list[Tensor], whole: Tensor) -> dict[str, float]:
    """One draw of one way: `truth` and `whole` are the gradients of the whole signal, by logits and by parameters."""
    gradients, kepts = zip(*(by_logits(p, way, k, temperature) for p in scene.portions), strict=True)
    total = scene.gradient(list(gradients))
    ours, theirs = torch.cat(gradients), torch.cat(truth)
    size = theirs.norm(dim=1)
    cosine = torch.nn.functional.cosine_similarity(ours, theirs)
    exact = torch.cat([full(p, 0, temperature).loss.detach() for p in scene.portions])
    loss = torch.cat([kept.loss.detach() for kept in kepts])
    best, confidence = (torch.cat([getattr(kept, name) for kept in kepts]) for name in ("best", "confidence"))
    correct = best == torch.cat([p.truth for p in scene.portions])
    bins = calibration(confidence.double().clamp(max=1.0).numpy(), correct.numpy())
    return {
        "bytes": bytes_per_position([kept.arrays for kept in kepts], scene.targets),
        "angle": angle(total, whole),
        "error": ((total - whole).norm() / whole.norm()).item(),
        "angle_per_target": cosine.clamp(-1, 1).acos().rad2deg().mean().item(),
        "error_per_target": ((ours - theirs).norm(dim=1) / size).mean().item(),
        "kl_off": (loss.mean() - exact.mean()).item(),
        "calibration_error": expected_calibration_error(bins),
    }


def bytes_per_position(arrays: list[dict[str, NDArray]], targets: int) -> float:
    """As the cache's codec packs them, all targets in one chunk."""
    total = 0
    for name in arrays[0]:
        whole = np.concatenate([part[name] for part in arrays])
        spec = ArraySpec(name, whole.shape, whole.shape, whole.dtype, 0, ("target",) * whole.ndim)
        total += len(encode_chunk(spec, whole))
    return total / targets


def logits_kept(scene: Scene, teacher: Teacher, draws: int) -> list[dict[str, Any]]:
    """Every way with every k, at temperature 2 the three that matter: medians over the draws."""
    order = similarity_order(teacher.head.weight.float())
    main: dict[str, tuple[Way, tuple[int, ...], int]] = {
        "top-k + tail bucket": (topk_and_tail, KEPT, 1),
        "random sampling": (random_sampling, DRAWN, draws),
        "threshold sample": (threshold_sample, KEPT, draws),
    }
    others: dict[str, tuple[Way, tuple[int, ...], int]] = {
        "top-k renormalised": (topk_renormalised, KEPT, 1),
        "top-k, residual to the true token": (residual_to_truth, KEPT, 1),
        "half top-k, half draws": (half_and_half, KEPT, draws),
        "threshold sample, similar tokens in a row": (threshold_in_order(order), KEPT, draws),
        f"threshold samples, {ROUNDS} for {ROUNDS} epochs": (in_rounds(threshold_sample, ROUNDS), KEPT[1:], draws),
    }
    results = []
    for temperature, ways in ((1.0, main | others), (2.0, main)):
        truth = [by_logits(portion, full, 0, temperature)[0] for portion in scene.portions]
        whole = scene.gradient(truth)
        for name, (way, ks, times) in ways.items():
            for k in ks:
                found = [measure(scene, way, k, temperature, truth, whole) for _ in range(times)]
                medians = {column: statistics.median(one[column] for one in found) for column in found[0]}
                spread = max(one["angle"] for one in found) - min(one["angle"] for one in found)
                results.append({"way": name, "temperature": temperature, "k": k, **medians, "angle_spread": spread})
                print(line_of(results[-1]), flush=True)
    return results


def line_of(found: dict[str, Any]) -> str:
    return (
        f"T = {found['temperature']:g}  {found['way']:<44} k = {found['k']:<4} {found['bytes']:6.1f} bytes  "
        f"angle {found['angle']:6.2f}° (± {found['angle_spread'] / 2:.2f})  error {found['error']:.3f}  "
        f"per target {found['angle_per_target']:5.1f}°  KL off {found['kl_off']:+.4f}  "
        f"ECE {found['calibration_error']:.3f}"
    )


ENCODINGS = ("float16", "square root in uint8")


def encoded(maps: Tensor, encoding: str) -> tuple[Tensor, NDArray]:
    """Maps [B, 1, m, m] as they come back, rows summing to 1 again, and what is stored of them."""
    if encoding == "float16":
        return maps.half().float(), maps.half().numpy()
    codes = (maps.sqrt() * 255).round().to(torch.uint8)
    back = (codes.float() / 255).square()
    return back / back.sum(-1, keepdim=True).clamp(min=1e-12), codes.numpy()


def maps_kept(cache: Cache, teacher: Teacher, student: XLMRobertaForMaskedLM, targets: int) -> list[dict[str, Any]]:
    """The gradient of the last layer's map loss for the body, pooled and encoded, against that of unpooled maps."""
    parameters = [p for name, p in student.named_parameters() if name.startswith("roberta.encoder")]
    teacher_layer, student_layer = cache.recipe.teacher_layers - 1, student.config.num_hidden_layers - 1
    batches = list(validation_batches(cache, targets))

    def maps_of(model: Any, layer: int, batch: Batch, size: int) -> Tensor:
        seq_len = batch["input_ids"].shape[1]
        mask = torch.arange(seq_len) < batch["length"][:, None]
        capture = AttentionCapture((layer,), batch["length"], seq_len, size)
        model(batch["input_ids"], attention_mask=mask, attention_capture=capture)
        return capture.maps()

    def gradient(size: int, encoding: str | None) -> tuple[Tensor, float, float]:
        total, loss, rows, stored = torch.zeros(sum(p.numel() for p in parameters)), 0.0, 0, []
        for batch in batches:
            with torch.no_grad():
                theirs = maps_of(teacher.model.base_model, teacher_layer, batch, size)
            if encoding:
                theirs, array = encoded(theirs, encoding)
                stored.append({"attention": array})
            losses = attention_kl(theirs, maps_of(student.roberta, student_layer, batch, size), batch["length"])
            parts = torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
            filled = zip(parts, parameters, strict=True)
            total += torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for g, p in filled])
            loss, rows = loss + losses.sum().item(), rows + len(losses)
        tokens = sum(int(batch["length"].sum()) for batch in batches)
        return total, bytes_per_position(stored, tokens) if stored else 0.0, loss / rows

    whole, _, _ = gradient(max(MAP_SIZES), None)
    results = []
    for size in MAP_SIZES:
        exact, _, exact_loss = gradient(size, None)
        for encoding in ENCODINGS:
            ours, taken, loss = gradient(size, encoding)
            results.append(
                {
                    "size": size, "encoding": encoding, "bytes_per_token": taken, "angle": angle(ours, whole),
                    "angle_of_encoding": angle(ours, exact), "loss_off": loss - exact_loss,
                }
            )  # fmt: skip
            print(
                f"maps {size:>3} × {size:<3} {encoding:<22} {taken:6.2f} bytes a token  angle to the full maps "
                f"{results[-1]['angle']:6.2f}°, to the same size unrounded {results[-1]['angle_of_encoding']:.3f}°, "
                f"loss off {results[-1]['loss_off']:+.6f}",
                flush=True,
            )
    return results


def plot(results: dict[str, Any], folder: Path) -> None:
    """fidelity-logits.svg and fidelity-maps.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    logits: dict[str, list[tuple[float, float]]] = {}
    for one in results["logits"]:
        if one["temperature"] == 1.0 and one["bytes"]:
            logits.setdefault(one["way"], []).append((one["bytes"], one["angle"]))
    title = f"Gradient of {results['targets']:,} targets"
    draw(folder / "fidelity-logits.svg", title, logits, "bytes per target", "degrees to that of all logits")
    maps: dict[str, list[tuple[float, float]]] = {}
    for one in results["maps"]:
        maps.setdefault(one["encoding"], []).append((one["bytes_per_token"], max(one["angle"], 0.01)))
    draw(folder / "fidelity-maps.svg", "Gradient of the map loss", maps, "bytes per token", "degrees to full maps")


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
        settings = BuildSettings(folder / "mixed.zarr", "mul", source, (str(text),), max_tokens=400_000)
        cache = build_cache(settings)
        loaded = load_teacher(source)
        arm = Arm(learnt_from, "", DEFAULT if learnt_from == "teacher" else PLAIN, online=learnt_from == "teacher")
        student, _, _ = train(arm, cache, loaded, "small", steps, 0, folder)
        scene = set_the_scene(cache, loaded, student, targets)
        mass = torch.cat([p.logprob.topk(64, dim=1).values.exp().sum(1) for p in scene.portions]).mean().item()
        results = {
            "targets": scene.targets, "student_steps": steps, "student_learnt_from": learnt_from, "draws": draws,
            "teacher_top64_mass": mass,
            "logits": logits_kept(scene, loaded, draws), "maps": maps_kept(cache, loaded, student, targets),
            "minutes": round((time.monotonic() - started) / 60, 1),
        }  # fmt: skip
    plot(results, output.parent)
    output.write_text(json.dumps(results, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
