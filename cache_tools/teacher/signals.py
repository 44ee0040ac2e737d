"""One forward pass of the teacher over a batch, and what the cache keeps of it."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools.errors import CometError
from cache_tools.pooling import AttentionCapture
from cache_tools.rows import UNUSED_ID, UNUSED_POSITION, threshold_offsets
from cache_tools.store.recipe import Recipe
from cache_tools.teacher.logits import keep_threshold_sample, keep_topk
from cache_tools.teacher.model import Teacher


def seen_mask(ids: NDArray[np.int32], vocab_size: int, device: torch.device) -> Tensor:
    """[V] bool on the device: which ids occur in the corpus."""
    seen = torch.zeros(vocab_size, dtype=torch.bool)
    seen[torch.from_numpy(ids.astype(np.int64))] = True
    return seen.to(device)


@torch.inference_mode()
def teacher_signals(
    teacher: Teacher, recipe: Recipe, tokens: dict[str, NDArray], seen: Tensor, device: torch.device
) -> dict[str, NDArray]:
    """The teacher's arrays of a batch of rows, named, shaped and typed as in the cache.

    `tokens` are the token arrays of the batch, `seen` [V] bool on the device.
    Raises CometError when a value is not finite, as fp16 may overflow.
    """
    longest = int(tokens["length"].max())
    input_ids = torch.from_numpy(tokens["input_ids"][:, :longest].astype(np.int64)).to(device)  # [B, L']
    length = torch.from_numpy(tokens["length"].astype(np.int64)).to(device)  # [B]
    mask = torch.arange(longest, device=device) < length[:, None]  # [B, L']
    capture = AttentionCapture(recipe.attention_layers, length, longest, recipe.attention_size)
    hidden = teacher.hidden_states(input_ids, mask, capture)  # [B, L', H]

    position = tokens["target_position"]
    row, slot = np.nonzero(position != UNUSED_POSITION)
    at = torch.from_numpy(position[row, slot].astype(np.int64)).to(device)  # [T]
    features = teacher.transform(hidden[torch.from_numpy(row).to(device), at])  # [T, H]
    if not torch.isfinite(features).all():
        raise CometError(overflow("logits are"))
    if recipe.keep == "threshold":
        offset = threshold_offsets(tokens["row_key"], position, recipe.seed)[row, slot]
        kept = keep_threshold_sample(
            features, teacher.head, recipe.top_k, recipe.temperatures, seen, torch.from_numpy(offset).to(device)
        )
    else:
        kept = keep_topk(features, teacher.head, recipe.top_k, recipe.temperatures, seen)

    def slots(values: Tensor, dtype: str, fill: float) -> NDArray:
        """[B, M, …] with `values` [T, …] at the targets and `fill` in unused slots."""
        whole = np.full((*position.shape, *values.shape[1:]), fill, dtype=dtype)
        whole[row, slot] = values.cpu().numpy()
        return whole

    arrays = {
        "topk_id": slots(kept.ids, "int32", UNUSED_ID),
        "topk_logprob": slots(kept.logprob, "float16", np.nan),
        "tail_logmass": slots(kept.tail_logmass, "float32", np.nan),
        "tail_logmass_seen": slots(kept.tail_logmass_seen, "float32", np.nan),
    }
    if kept.threshold is not None:
        arrays["threshold"] = slots(kept.threshold, "float32", np.nan)
    if recipe.attention_layers:
        arrays["attention"] = capture.maps().half().cpu().numpy()
    if not np.isfinite(arrays["topk_logprob"][row, slot]).all() or np.isnan(arrays["tail_logmass"][row, slot]).any():
        raise CometError(overflow("logits are"))
    if "attention" in arrays and not np.isfinite(arrays["attention"]).all():
        raise CometError(overflow("attention is"))
    return arrays


def overflow(what: str) -> str:
    return f"the teacher's {what} not finite; in float16 some models overflow: use --dtype float32"
