"""The ways to keep attention maps that fidelity.py compares: pooled to a size, rounded to a code."""

from typing import Any

import torch
from fidelity_measures import Batch, angle, bytes_per_position, validation_batches
from numpy.typing import NDArray
from torch import Tensor
from transformers import XLMRobertaForMaskedLM

from cache_tools import Cache
from cache_tools.attention import AttentionCapture, from_codes, to_codes
from cache_tools.teacher.model import Teacher
from comet.train.distiller import match_layers
from comet.train.losses import attention_kl

MAP_SIZES = (8, 16, 32, 64, 128)
ENCODINGS = ("float16", "square root in uint8")


def encoded(maps: Tensor, encoding: str) -> tuple[Tensor, NDArray]:
    """Maps [B, layers, m, m] as they come back, rows summing to 1 again, and what is stored of them."""
    if encoding == "float16":
        return maps.half().float(), maps.half().numpy()
    codes = to_codes(maps)
    return from_codes(codes), codes.numpy()


def maps_kept(cache: Cache, teacher: Teacher, student: XLMRobertaForMaskedLM, targets: int) -> list[dict[str, Any]]:
    """The gradient of the map loss of all layers for the body, pooled and encoded, against that of unpooled maps."""
    parameters = [p for name, p in student.named_parameters() if name.startswith("roberta.encoder")]
    of_teacher, of_student = zip(*match_layers(cache.recipe, student.config.num_hidden_layers), strict=True)
    batches = list(validation_batches(cache, targets))

    def maps_of(model: Any, layers: tuple[int, ...], batch: Batch, size: int) -> Tensor:
        seq_len = batch["input_ids"].shape[1]
        mask = torch.arange(seq_len) < batch["length"][:, None]
        capture = AttentionCapture(layers, batch["length"], seq_len, size)
        model(batch["input_ids"], attention_mask=mask, attention_capture=capture)
        return capture.maps()

    def gradient(size: int, encoding: str | None) -> tuple[Tensor, float, float]:
        total, loss, rows, stored = torch.zeros(sum(p.numel() for p in parameters)), 0.0, 0, []
        for batch in batches:
            with torch.no_grad():
                theirs = maps_of(teacher.model.base_model, of_teacher, batch, size)
            if encoding:
                theirs, array = encoded(theirs, encoding)
                stored.append({"attention": array})
            losses = attention_kl(theirs, maps_of(student.roberta, of_student, batch, size), batch["length"])
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
