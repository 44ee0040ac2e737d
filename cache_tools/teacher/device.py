"""Choose the teacher's dtype and batch size, and record them with the device for the commit record."""

import sys

import numcodecs
import psutil
import torch
import transformers
from tqdm import tqdm

from cache_tools.errors import CometError
from cache_tools.models import is_out_of_memory
from cache_tools.teacher.head import LOGITS_AT_ONCE
from cache_tools.teacher.model import Teacher

TOKENS_AT_ONCE = {"cpu": 4096, "cuda": 16384}  # more does not make a forward pass faster
MEMORY_SHARE = 0.8


def choose_dtype(requested: str, device: torch.device) -> torch.dtype:
    """Return the requested dtype; `auto` is bfloat16 on GPUs that have it, float16 on older ones, float32 on a CPU."""
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if requested != "auto":
        return named[requested]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def choose_batch_size(teacher: Teacher, seq_len: int, device: torch.device, dtype: torch.dtype) -> int:
    """Return the rows of one forward pass: a power of two, at least 1, as many as are useful and fit in free memory."""
    kind = device.type if device.type in TOKENS_AT_ONCE else "cpu"
    free = torch.cuda.mem_get_info(device)[0] if kind == "cuda" else psutil.virtual_memory().available
    config, width = teacher.model.config, dtype.itemsize
    head = teacher.head.weight.numel() * (4 if kind == "cpu" else width) + 6 * LOGITS_AT_ONCE[kind]
    weights = teacher.parameters * width if kind == "cuda" else 0  # on a CPU they are loaded already
    # one layer's query, key, value, attention output, two residuals, and its feed-forward before and after gelu
    feed_forward = getattr(config, "intermediate_size", 4 * config.hidden_size)  # DistilBERT has another name for it
    row = seq_len * width * (6 * config.hidden_size + 2 * feed_forward)
    rows = min(TOKENS_AT_ONCE[kind] // seq_len, int((MEMORY_SHARE * free - head - weights) / row))
    return 1 << max(rows, 1).bit_length() - 1


def smaller_batch(error: RuntimeError, batch_size: int) -> int:
    """Return half the batch size if memory ran out. Raises any other error, and CometError if one row is too much."""
    if not is_out_of_memory(error):
        raise error
    if batch_size == 1:
        raise CometError(
            "out of memory with one row at a time; use another --device or --dtype bfloat16, or, for another cache, a "
            "smaller teacher or a shorter --seq-len"
        ) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    tqdm.write(f"out of memory: continuing with batches of {batch_size // 2} rows", file=sys.stderr)
    return batch_size // 2


def numerics(device: torch.device, dtype: torch.dtype, batch_size: int) -> dict[str, str]:
    """Return all that a shard's last bits depend on, for its commit record: kinds and versions, no host names."""
    if device.type == "cuda":
        kind = {"device": torch.cuda.get_device_name(device)}
    else:  # vector instructions and the number of threads change the order in which matrix products add
        instructions, threads = torch.backends.cpu.get_cpu_capability(), str(torch.get_num_threads())
        kind = {"device": "cpu", "instructions": instructions, "threads": threads}
    return kind | {
        "dtype": str(dtype).removeprefix("torch."),
        "batch_size": str(batch_size),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numcodecs": numcodecs.__version__,
    }
