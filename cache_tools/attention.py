"""Attention of a few queries, for teacher and student alike, and the code in which a cache keeps it.

A row of attention is that of one query over the keys of its text, averaged over the heads. A cache holds a sample of
its keys, as the gaps between them, and their weights. With weight 0 for all other keys its expectation is the whole
row.
"""

from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cache_tools.errors import CometError
from cache_tools.signals import WEIGHT_STEPS

IMPLEMENTATION = "comet_sampled_sdpa"


def attention_rows(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None, at: Tensor) -> Tensor:
    """Return the attention [B, S, L] float32 of the queries `at` [B, S], the mean over heads. No L × L matrix is made.

    `query` is [B, H, L, d]; `key` is [B, H', L, d], each of its heads for H ÷ H' heads of the query; `mask` is
    [B or 1, 1, L or 1, L] bool, True where a key may be attended to. The row of a query without such a key, which only
    padding is, is uniform.
    """
    if (heads_of_key := query.shape[1] // key.shape[1]) > 1:
        key = key.repeat_interleave(heads_of_key, dim=1)  # [B, H, L, d]
    rows, scaling = torch.arange(len(at), device=at.device)[:, None], scaling or query.shape[3] ** -0.5
    chosen = query.transpose(1, 2)[rows, at].transpose(1, 2)  # [B, H, S, d]
    scores = chosen.float() @ key.float().transpose(2, 3) * scaling  # [B, H, S, L]
    if mask is not None:
        allowed = mask.expand(len(query), 1, query.shape[2], key.shape[2])[rows, 0, at][:, None]  # [B, 1, S, L]
        # not −∞: far from any token a sliding window holds only padding, and a NaN there would reach all gradients
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return scores.softmax(3).mean(1)


def encode_weights(weight: Tensor) -> Tensor:
    """Return uint8 codes of weights in [0, 1]: WEIGHT_STEPS times the square root, fine for small weights too."""
    return weight.sqrt().mul(WEIGHT_STEPS).round().to(torch.uint8)


def encode_keys(key: Tensor, seq_len: int) -> Tensor:
    """Return the gaps […, k] of ascending keys […, k], −1 in unused slots, which come last; see `decode_keys`."""
    gap = torch.diff(key, dim=-1, prepend=torch.full_like(key[..., :1], -1)) - 1
    return gap.masked_fill(key < 0, seq_len)


def decode_keys(gap: Tensor, code: Tensor, seq_len: int) -> tuple[Tensor, Tensor]:
    """Return the keys […, k] int64, 0 in unused slots, and their weights […, k] float32: 0 there, else of sum 1.

    `gap` […, k] are the positions between a key and the one before, or the beginning of the row, `seq_len` in unused
    slots. `code` […, k] uint8 is 0 for drawn keys: they share equally the weight that the others leave of 1.
    """
    is_used = gap < seq_len
    is_drawn = is_used & (code == 0)
    key = ((gap + 1).cumsum(-1) - 1).masked_fill(~is_used, 0)
    weight = (code.float() / WEIGHT_STEPS).square()
    left = (1 - weight.sum(-1, keepdim=True)).clamp(min=0)
    weight = torch.where(is_drawn, left / is_drawn.sum(-1, keepdim=True).clamp(min=1), weight)
    return key, weight / weight.sum(-1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)


class AttentionCapture:
    """The attention of some queries in some layers, collected in one forward pass of a model prepared by
    `enable_capture`.

    Pass it to the model's body as the keyword argument `attention_capture`. `queries` [B, layers, S] int64 are the
    positions of the queries in each of `layers`.
    """

    def __init__(self, layers: tuple[int, ...], queries: Tensor) -> None:
        self.layers, self.queries = layers, queries
        self.collected: dict[int, Tensor] = {}
        self._unnumbered = count()

    def layer_of(self, module: nn.Module) -> int:
        """Return the layer of an attention module; modules without a number are counted as they are called."""
        number: int | None = getattr(module, "layer_idx", None)
        return next(self._unnumbered) if number is None else number

    def collect(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None) -> None:
        at = self.queries[:, self.layers.index(layer)]  # [B, S]
        self.collected[layer] = attention_rows(query, key, mask, scaling, at)

    def rows(self) -> Tensor:
        """Return rows of attention [B, layers, S, L] float32.

        Raises CometError if a layer did not pass its attention through the capture.
        """
        if missing := [layer for layer in self.layers if layer not in self.collected]:
            raise CometError(
                f"attention of layers {missing} could not be captured: this model does not use the attention "
                "interface of transformers there; build without attention: --attention-layers none"
            )
        return torch.stack([self.collected[layer] for layer in self.layers], dim=1)


def _capturing_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    attention_capture: AttentionCapture | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Run transformers' own SDPA attention, and pass query and key to the capture, if any."""
    if attention_capture is not None and (layer := attention_capture.layer_of(module)) in attention_capture.layers:
        with torch.autocast(query.device.type, enabled=False):  # autocast would round the weights to half precision
            attention_capture.collect(layer, query, key, attention_mask, scaling)
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


def _mask_by_shapes(attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Return transformers' own mask for SDPA, which drops a mask that is True everywhere. Only on a CPU may it look for
    that: on a GPU the answer would wait for all queued work."""
    may_look = attention_mask is None or attention_mask.device.type == "cpu"
    kwargs["allow_is_bidirectional_skip"] = may_look and kwargs.get("allow_is_bidirectional_skip", False)
    return sdpa_mask(attention_mask=attention_mask, **kwargs)


def enable_capture(model: PreTrainedModel) -> None:
    """Switch a model to SDPA attention that an AttentionCapture can collect rows from.

    Raises CometError if the model does not support the attention interface.
    """
    # Without the second registration transformers silently drops the padding mask.
    AttentionInterface.register(IMPLEMENTATION, _capturing_sdpa)
    AttentionMaskInterface.register(IMPLEMENTATION, _mask_by_shapes)
    try:
        model.set_attn_implementation(IMPLEMENTATION)
    except (ValueError, NotImplementedError) as error:
        raise CometError(f"{type(model).__name__} does not support the attention interface: {error}") from None
