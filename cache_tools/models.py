"""Shared by teacher, student and evaluation: the device, the hash of weights, limits and loading errors of models."""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import torch
import transformers.utils.logging as transformers_logging
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from cache_tools.errors import CometError, first_line

TEACHER_FILES = "a folder or a name on the hub with config.json, a tokenizer and model.safetensors or pytorch_model.bin"
AFTER_PADDING = ("camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet", "xmod")


def choose_device(requested: str, environment: Mapping[str, str] = os.environ) -> torch.device:
    """Return the requested device; `auto` is the first GPU, under torchrun that of the local rank, or else the CPU.

    Raises CometError if the device is not available.
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


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on a GPU, or on a CPU, for which torch has no type of error."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def weights_sha256(model: PreTrainedModel) -> str:
    """Return the SHA-256 over name, dtype, shape and bytes of every tensor, whatever files they were loaded from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def max_positions(config: PretrainedConfig) -> int:
    """Return the most tokens a model can read, `sys.maxsize` if its positions are unlimited.

    The positions of RoBERTa and its kin start after the padding id, so the first pad_token_id + 1 embeddings are never
    used.
    """
    starts_after_padding = "roberta" in config.model_type or config.model_type in AFTER_PADDING
    offset = config.pad_token_id + 1 if starts_after_padding else 0
    return int(getattr(config, "max_position_embeddings", sys.maxsize)) - offset


@contextmanager
def loading_errors(what: str, expected: str = TEACHER_FILES, exit_code: int = 1) -> Iterator[None]:
    """Turn whatever transformers raises for missing, damaged or foreign files into a CometError on `what`.

    Silences its report of missing weights, which the caller checks.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    except CometError:
        raise
    except UnpicklingError as error:
        raise CometError(
            f"{what} cannot be loaded: its weights are damaged, or a pickle that holds more than tensors, which is "
            "never run; get the file again, or a model.safetensors",
            exit_code=exit_code,
        ) from error
    except Exception as error:  # anything: transformers has no error type of its own
        raise CometError(
            f"{what} cannot be loaded; expected {expected}. transformers reports: {first_line(error)}",
            exit_code=exit_code,
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def head_transform(model: Any) -> Callable[[Tensor], Tensor] | None:
    """Return what the head of a masked LM does before its last linear layer, None if its kind is unknown."""
    if isinstance(getattr(model, "lm_head", None), nn.Linear):  # EuroBERT
        return nn.Identity()
    if hasattr(model, "lm_head") and hasattr(model.lm_head, "layer_norm"):  # RoBERTa, XLM-R, CamemBERT …
        head = model.lm_head
        return lambda hidden: head.layer_norm(nn.functional.gelu(head.dense(hidden)))
    if hasattr(model, "cls") and hasattr(model.cls, "predictions"):  # BERT; RemBERT
        predictions = model.cls.predictions
        return getattr(predictions, "transform", None) or _dense_then_norm(predictions)
    if hasattr(model, "predictions"):  # ALBERT
        return _dense_then_norm(model.predictions)
    if hasattr(model, "generator_predictions"):  # the generators of ELECTRA and ConvBERT
        predict: Callable[[Tensor], Tensor] = model.generator_predictions
        return predict
    if hasattr(model, "vocab_transform"):  # DistilBERT
        return lambda hidden: model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))
    if hasattr(model, "head") and hasattr(model, "decoder"):  # ModernBERT
        return model.head
    return None


def _dense_then_norm(head: Any) -> Callable[[Tensor], Tensor]:
    return lambda hidden: head.LayerNorm(head.activation(head.dense(hidden)))
