"""The ways to keep attention that fidelity.py compares: a number of queries, and a number of keys of each."""

from typing import Any

import numpy as np
import torch
from fidelity_measures import Batch, angle, bytes_per_position, validation_batches
from numpy.typing import NDArray
from torch import Tensor
from transformers import XLMRobertaForMaskedLM

from cache_tools import Cache
from cache_tools.attention import AttentionCapture, decode_keys, encode_keys
from cache_tools.signals import UNUSED_POSITION
from cache_tools.teacher.attention import keep_keys
from cache_tools.teacher.model import Teacher
from cache_tools.text.draws import attention_queries, key_offsets
from comet.train.distiller import match_layers
from comet.train.losses import SampledRows, attention_cross_entropy

KEPT = ((1, 128), (8, 128), (16, 128), (32, 128), (1, 16), (4, 8), (4, 16), (8, 4), (8, 8), (8, 16), (8, 32), (16, 16))
"""Queries, one in so many, and keys of each at most."""
DRAWS = 3


def attention_kept(
    cache: Cache, teacher: Teacher, student: XLMRobertaForMaskedLM, targets: int
) -> list[dict[str, Any]]:
    """The gradient of the attention loss of all layers for the body, sampled, against that of whole maps."""
    parameters = [p for name, p in student.named_parameters() if name.startswith("roberta.encoder")]
    of_teacher, of_student = zip(*match_layers(cache.recipe, student.config.num_hidden_layers), strict=True)
    batches = list(validation_batches(cache, targets))
    seq_len, drawing = cache.recipe.seq_len, np.random.default_rng(0)

    def rows_of(model: Any, layers: tuple[int, ...], batch: Batch, queries: Tensor) -> Tensor:
        mask = torch.arange(batch["input_ids"].shape[1]) < batch["length"][:, None]
        capture = AttentionCapture(layers, queries)
        model(batch["input_ids"], attention_mask=mask, attention_capture=capture)
        return capture.rows()

    def gradient(every: int, k: int) -> tuple[Tensor, float]:
        slots = -(-seq_len // every)
        total, stored = torch.zeros(sum(p.numel() for p in parameters)), []
        for batch in batches:
            length = batch["length"]
            drawn = drawing.integers(0, 2**64, len(length), dtype=np.uint64)
            found = attention_queries(drawn, length.numpy(), of_teacher, every, slots).astype(np.int64)
            query = torch.from_numpy(found)  # [B, layers, S]
            is_query = query != UNUSED_POSITION
            query = query.masked_fill(~is_query, 0)
            with torch.no_grad():
                theirs = rows_of(teacher.model.base_model, of_teacher, batch, query)
            offset = torch.from_numpy(key_offsets(drawn, of_teacher, slots))
            key, code = keep_keys(theirs, length, is_query, k, offset)
            gap = encode_keys(key, seq_len)
            stored.append(arrays(gap, code))
            sampled = SampledRows(*decode_keys(gap, code, seq_len), length)
            losses = attention_cross_entropy(sampled, rows_of(student.roberta, of_student, batch, query))
            parts = torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
            filled = zip(parts, parameters, strict=True)
            total += torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for g, p in filled])
        tokens = sum(int(batch["length"].sum()) for batch in batches)
        return total, bytes_per_position(stored, tokens)

    whole, _ = gradient(1, max(k for _, k in KEPT))
    results = []
    for every, k in KEPT:
        draws = [gradient(every, k) for _ in range(DRAWS)]
        found = {
            "every": every, "keys": k, "bytes_per_token": draws[0][1],
            "angle": float(np.mean([angle(ours, whole) for ours, _ in draws])),
        }  # fmt: skip
        results.append(found)
        print(
            f"one query in {every:>2}, {k:>3} keys  {found['bytes_per_token']:7.2f} bytes a token  angle to whole maps "
            f"{found['angle']:6.2f}°",
            flush=True,
        )
    return results


def arrays(gap: Tensor, code: Tensor) -> dict[str, NDArray]:
    """What a cache stores."""
    return {"attention_gap": gap.numpy().astype(np.uint16), "attention_weight": code.numpy()}
