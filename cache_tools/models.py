"""Models of transformers, teachers and students alike: device, identity of the weights, loading errors."""

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from cache_tools.errors import CometError, first_line


def choose_device(requested: str, environment: Mapping[str, str] = os.environ) -> torch.device:
    """Return the device; `auto` is the first GPU if there is one, under torchrun that of this process's local rank.

    Raises CometError if the requested device is not available.
    """
    if requested == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(environment.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    try:
        device = torch.device(requested)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CometError(f"--device {requested}: not available here ({first_line(error)})", exit_code=2) from None
    return device


def weights_sha256(model: PreTrainedModel) -> str:
    """Return SHA-256 over name, dtype, shape and content of every tensor: file names and formats make no difference."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def loading_errors(name: str, what: str) -> Any:
    """Turn the errors of transformers for missing or broken files into one clear line."""
    try:
        yield
    except UnpicklingError as error:
        raise CometError(
            f"teacher {name}: its weights cannot be loaded: they are damaged, or a pickle of more than tensors, which "
            "is never run; download the file again, or a model.safetensors"
        ) from error
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise CometError(
            f"teacher {name}: its {what} cannot be loaded; expected a folder or a name on the hub with config.json, a "
            f"tokenizer and model.safetensors or pytorch_model.bin. transformers: {first_line(error)}"
        ) from error


def head_transform(model: Any) -> Callable[[Tensor], Tensor] | None:
    """What the head of a masked LM does between the body and its last linear layer, None if unknown."""
    if hasattr(model, "lm_head") and hasattr(model.lm_head, "layer_norm"):  # RoBERTa, XLM-R, CamemBERT …
        head = model.lm_head
        return lambda hidden: head.layer_norm(nn.functional.gelu(head.dense(hidden)))
    if hasattr(model, "cls") and hasattr(model.cls, "predictions"):  # BERT
        return model.cls.predictions.transform
    if hasattr(model, "head") and hasattr(model, "decoder"):  # ModernBERT
        return model.head
    return None
