"""The usual script in place of a build: the baseline that a build is compared with, on a CPU and on a GPU."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

USUAL_ROWS = 32  # of a batch, whose logits take 7 GiB for 128 tokens in a row


@torch.inference_mode()
def usual_script(
    model: PreTrainedModel, batches: list[dict[str, NDArray[Any]]], folder: Path, device: torch.device
) -> None:
    """Write eager attention of the last layer and the best 64 of all log-probabilities, a file for each batch."""
    for number, tokens in enumerate(batches):
        ids, length = (torch.from_numpy(tokens[n].astype(np.int64)).to(device) for n in ("input_ids", "length"))
        mask = torch.arange(ids.shape[1], device=device) < length[:, None]
        result = model(ids, attention_mask=mask, output_attentions=True)
        best = torch.log_softmax(result.logits.float(), -1).topk(64)
        np.savez(
            folder / f"{number}.npz",
            values=best.values.half().cpu(), ids=best.indices.int().cpu(),
            attention=result.attentions[-1].half().cpu(),
        )  # fmt: skip
        del result, best
