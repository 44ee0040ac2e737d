"""Loading a teacher and saying which one it is."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForMaskedLM,
    PreTrainedModel,
)

from cache_tools.attention import AttentionCapture, enable_capture
from cache_tools.errors import CometError
from cache_tools.models import head_transform, loading_errors, weights_sha256
from cache_tools.teacher.head import Head
from cache_tools.text.hub import licence_of, model_folder


@dataclass(frozen=True)
class Teacher:
    """A masked LM taken apart: the body, what its head does before the last linear layer, and that layer."""

    model: PreTrainedModel
    transform: Callable[[Tensor], Tensor]
    head: Head
    sha256: str

    def to(self, device: torch.device, dtype: torch.dtype) -> "Teacher":
        """The same teacher on a device in a dtype; the model is moved, not copied."""
        self.model.to(device, dtype)  # type: ignore[arg-type]
        head = Head(self.head.weight.to(device, dtype), self.head.bias.to(device, dtype))
        return replace(self, head=head)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @property
    def input_embedding(self) -> Tensor:
        """[V, H]"""
        return self.model.get_input_embeddings().weight  # type: ignore[return-value]

    def hidden_states(self, input_ids: Tensor, mask: Tensor, capture: AttentionCapture | None) -> Tensor:
        """[B, L, H] of the last layer. `input_ids` and `mask` [B, L]."""
        body: Any = self.model.base_model
        hidden: Tensor = body(input_ids, attention_mask=mask, attention_capture=capture).last_hidden_state
        return hidden


@dataclass(frozen=True)
class Observation:
    """What one forward pass shows of a batch, on the device.

    `features` [T, H] are the input of the head's last layer at each target; `offset` [T] float64 in [0, 1) is where its
    sampling starts; `capture` holds the attention.
    """

    features: Tensor
    offset: Tensor
    capture: AttentionCapture


def load_teacher(name: str) -> Teacher:
    """A masked LM from a folder or the hub, on the CPU in float32, ready to capture attention.

    Reads safetensors, or `pytorch_model.bin` through torch's weights-only loading; never runs code from the teacher.
    Raises CometError when it cannot be had or loaded, has no masked-LM head, or has an unknown kind of head.
    """
    folder = teacher_folder(name)
    with loading_errors(f"teacher {name}: its model"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
            raise CometError(f"teacher {name}: a {config.model_type} model is not a masked LM; choose one that is")
        model, loading = AutoModelForMaskedLM.from_pretrained(
            folder, config=config, dtype="auto", trust_remote_code=False, output_loading_info=True
        )
    if missing := sorted(loading["missing_keys"] or []):
        raise CometError(
            f"teacher {name}: the checkpoint has no masked-LM head or is incomplete (missing {', '.join(missing[:4])}"
            f"{', …' if len(missing) > 4 else ''}); a head of random numbers would teach nothing"
        )
    digest = weights_sha256(model)  # in the dtype it was saved in
    model.float().eval().requires_grad_(False)
    enable_capture(model)
    return split_head(model, digest, name)


def split_head(model: PreTrainedModel, digest: str, name: str) -> Teacher:
    """Takes the head apart and proves on one row that the parts give the model's own logits.

    Raises CometError when the head is of an unknown kind or the parts give something else.
    """
    decoder: Any = model.get_output_embeddings()
    transform = head_transform(model)
    if transform is None or not isinstance(decoder, nn.Linear):
        raise CometError(f"teacher {name}: {type(model).__name__} has a masked-LM head of an unknown kind")
    bias = decoder.bias if decoder.bias is not None else torch.zeros(decoder.out_features)
    teacher = Teacher(model, transform, Head(decoder.weight, bias), digest)
    with torch.no_grad():
        ids = torch.arange(4, 12)[None].clamp(max=decoder.out_features - 1)  # [1, 8]
        whole = model(ids, attention_mask=torch.ones_like(ids)).logits.float()
        features = transform(teacher.hidden_states(ids, torch.ones_like(ids), None))[0]
        parts = teacher.head.logits(features)
    worst = (whole[0] - parts).abs().max().item()
    if not worst <= 1e-3 * max(1.0, whole.abs().max().item()):
        raise CometError(f"teacher {name}: its head taken apart gives logits that differ by {worst:.3g} from its own")
    return teacher


def teacher_folder(name: str) -> Path:
    """Where the teacher's files lie. Raises CometError as `model_folder` does."""
    return model_folder(name, f"teacher {name}", "give --teacher FOLDER")


def teacher_licence(name: str) -> str:
    return licence_of(teacher_folder(name) / "README.md")
