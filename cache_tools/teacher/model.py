"""Loading a teacher, with the hash of its weights and its licence."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoConfig, AutoModelForMaskedLM, PreTrainedModel

from cache_tools.attention import AttentionCapture, enable_capture
from cache_tools.errors import CometError, first_line
from cache_tools.models import head_transform, loading_errors, weights_sha256
from cache_tools.teacher.checkpoint import require_supported
from cache_tools.teacher.head import Head
from cache_tools.text.hub import licence_of, model_folder

NEVER = -1e4  # nats: what a bias of −∞ becomes, of tokens that only fill a vocabulary up


@dataclass(frozen=True)
class Teacher:
    """A masked LM in parts: the model, its head's transform before the last linear layer, and that layer.

    `sha256` is the hash of the weights as saved; `why_no_attention` says why none can be captured, None if it can.
    """

    model: PreTrainedModel
    transform: Callable[[Tensor], Tensor]
    head: Head
    sha256: str
    why_no_attention: str | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> "Teacher":
        """Return the same teacher on a device in a dtype; the model is moved, not copied."""
        self.model.to(device, dtype)  # type: ignore[arg-type]
        head = Head(self.head.weight.to(device, dtype), self.head.bias.to(device, dtype))
        return replace(self, head=head)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @property
    def input_embedding(self) -> Tensor:
        """The input embeddings [V, H]."""
        return self.model.get_input_embeddings().weight  # type: ignore[return-value]

    def hidden_states(self, input_ids: Tensor, mask: Tensor | None, capture: AttentionCapture | None) -> Tensor:
        """Return the last layer's hidden states [B, L, H]. `input_ids` [B, L]; `mask` [B, L], None without padding."""
        body: Any = self.model.base_model
        captured = {"attention_capture": capture} if capture is not None and capture.layers else {}
        return body(input_ids, attention_mask=mask, **captured).last_hidden_state


@dataclass(frozen=True)
class Observation:
    """The results of one forward pass over a batch, on the device.

    `features` [T, H] are the inputs of the head's last layer at each target; `offset` [T] float64 in [0, 1) is where
    the target's sampling starts; `length` [B] are the tokens of each row. `capture` holds the attention of the slots
    that `is_query` [B, layers, S] marks, `key_offset` [B, layers, S] is where the sampling of their keys starts.
    """

    features: Tensor
    offset: Tensor
    length: Tensor
    capture: AttentionCapture
    is_query: Tensor
    key_offset: Tensor


def load_teacher(name: str) -> Teacher:
    """Load a masked LM from a folder or the hub, on the CPU in float32, ready to capture attention.

    Reads safetensors, or `pytorch_model.bin` through torch's weights-only loading; never runs code from the teacher.
    Raises CometError if it cannot be fetched or loaded, has no masked-LM head or one of an unknown kind, or if the
    model of transformers leaves out what the checkpoint says.
    """
    folder = teacher_folder(name)
    with loading_errors(f"teacher {name}: its model"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
            raise CometError(f"teacher {name}: a {config.model_type} model is not a masked LM; choose one that is")
        model, loading = AutoModelForMaskedLM.from_pretrained(
            folder,
            config=config,
            dtype="auto",
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, with their sizes
        )
    require_supported(name, model, loading)
    digest = weights_sha256(model)  # in the dtype of the checkpoint
    model.float().eval().requires_grad_(False)
    try:
        enable_capture(model)
        why_no_attention = None
    except CometError as error:
        why_no_attention = str(error)
    try:
        return replace(split_head(model, digest, name), why_no_attention=why_no_attention)
    except CometError:
        raise
    except Exception as error:  # whatever a model does that is not like those we know
        raise CometError(
            f"teacher {name}: {type(model).__name__} is a masked LM of an unknown kind: {first_line(error)}"
        ) from error


def split_head(model: PreTrainedModel, digest: str, name: str) -> Teacher:
    """Take the head apart, and prove on one row that the parts give the model's own logits.

    Raises CometError if the head is of an unknown kind or the parts give other logits.
    """
    decoder: Any = model.get_output_embeddings()
    transform = head_transform(model)
    if transform is None or not isinstance(decoder, nn.Linear):
        raise CometError(f"teacher {name}: {type(model).__name__} has a masked-LM head of an unknown kind")
    bias = decoder.bias if decoder.bias is not None else torch.zeros(decoder.out_features)
    teacher = Teacher(model, transform, Head(decoder.weight, bias.clamp(min=NEVER)), digest)
    with torch.no_grad():
        ids = torch.arange(4, 12)[None].clamp(max=decoder.out_features - 1)  # [1, 8]
        whole = model(ids, attention_mask=torch.ones_like(ids)).logits.float()
        features = transform(teacher.hidden_states(ids, torch.ones_like(ids), None))[0]
        parts = teacher.head.logits(features)
    never = bias == -torch.inf  # [V] tokens of a padded vocabulary
    worst = (whole[0] - parts)[:, ~never].abs().max().item()
    if not worst <= 1e-3 * max(1.0, whole[0][:, ~never].abs().max().item()):
        raise CometError(f"teacher {name}: its head taken apart gives logits that differ by {worst:.3g} from its own")
    return teacher


def teacher_folder(name: str) -> Path:
    """Return the folder of the teacher's files. Raises CometError as `model_folder` does."""
    return model_folder(name, f"teacher {name}", "give --teacher FOLDER")


def teacher_licence(name: str) -> str:
    """Return the licence in the card of a teacher. Raises CometError as `model_folder` does."""
    return licence_of(teacher_folder(name) / "README.md")
