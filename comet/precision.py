"""Whether a student's body trains in bfloat16: asked for, or measured once at the start."""

import time

import torch
from torch import Tensor

from comet.distiller import Distiller

TRIES = 3
WORTH_IT = 0.9  # of the time in float32


def choose_bf16(requested: str, distiller: Distiller, batch: dict[str, Tensor], device: torch.device) -> bool:
    """`float32` and `bfloat16` as they say; `auto` on a GPU that has it, and on a CPU where a step gets faster by it.

    Leaves gradients, random state and mode as they were.
    """
    if requested != "auto":
        return requested == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    state, was_training, before = torch.get_rng_state(), distiller.training, distiller.bf16
    distiller.to(device).train()
    seconds: dict[bool, float] = {}
    for _ in range(TRIES):
        for bf16 in (False, True):
            distiller.bf16 = bf16
            started = time.perf_counter()
            distiller(**batch)["loss"].backward()
            seconds[bf16] = min(seconds.get(bf16, float("inf")), time.perf_counter() - started)
            distiller.zero_grad(set_to_none=True)
    distiller.bf16 = before
    distiller.train(was_training)
    torch.set_rng_state(state)
    return seconds[True] < WORTH_IT * seconds[False]
