"""Pooled attention maps, for teacher and student alike.

A map [m, m] is the attention of one layer averaged over heads and over the query positions of a block, and summed
over the key positions of a block, so its rows still sum to 1. The blocks divide the valid tokens of a row evenly:
with n tokens, position p lies in block floor(p · min(n, m) / n); a row of n < m tokens uses n blocks, the others
are zero.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cache_tools.errors import CometError

IMPLEMENTATION = "comet_pooled_sdpa"
CODE_STEPS = 255


def block_members(length: Tensor, seq_len: int, size: int) -> Tensor:
    """Return [B, L, m] float32: 1 where a position lies in a block, all zero in the padding. `length` [B] int."""
    length = length.to(torch.int64)
    position = torch.arange(seq_len, device=length.device)  # [L]
    block = position * length.clamp(max=size)[:, None] // length[:, None]  # [B, L]
    valid = position < length[:, None]  # [B, L]
    member = block[:, :, None] == torch.arange(size, device=length.device)  # [B, L, m]
    return (member & valid[:, :, None]).float()


def query_means(members: Tensor) -> Tensor:
    """Return [B, m, L], the weights of a mean over the positions of each block; zero for blocks not in use."""
    return (members / members.sum(1, keepdim=True).clamp(min=1.0)).transpose(1, 2)


def pool_weights(weights: Tensor, members: Tensor) -> Tensor:
    """Pool attention weights [B, H, L, L] to maps [B, m, m] by definition."""
    return query_means(members) @ weights.float().mean(1) @ members


def pool_by_sdpa(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None, members: Tensor) -> Tensor:
    """Return the same maps [B, m, m] without ever holding an L × L matrix: SDPA with the block members as values.

    `query` and `key` [B, H, L, d]. The members are zero-padded to a multiple of the head size, because kernels that
    never write the weights need values as wide as the keys.
    """
    heads, width = query.shape[1], query.shape[3]
    slices = []
    for part in members.to(query.dtype).split(width, dim=2):  # [B, L, ≤ d]
        value = nn.functional.pad(part, (0, width - part.shape[2]))[:, None].expand(-1, heads, -1, -1)  # [B, H, L, d]
        attended = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)  # [B, H, L, d]
        slices.append(attended.float().mean(1)[:, :, : part.shape[2]])  # [B, L, ≤ d]
    return query_means(members) @ torch.cat(slices, dim=2)  # [B, m, m]


def _softmax_weights(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Return attention weights [B, H, L, L]. `mask` [B, 1, L, L] bool, True where a key may be attended to; the rows of
    a query without such a key, which only padding is, are uniform."""
    scaling = query.shape[3] ** -0.5 if scaling is None else scaling
    scores = (query @ key.transpose(2, 3)).float() * scaling
    if mask is not None:
        # not −∞: far from any token a sliding window holds only padding, and a NaN there would reach all gradients
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1)


def attend_and_pool(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    members: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the attention output [B, H, L, d] and the same maps [B, m, m] from one L × L matrix.

    For training on a CPU, where the backward pass of a second SDPA costs more than the matrix.
    """
    weights = _softmax_weights(query, key, mask, scaling)
    attended = nn.functional.dropout(weights, dropout, training=dropout > 0).to(value.dtype) @ value
    return attended, pool_weights(weights, members)


def to_codes(maps: Tensor) -> Tensor:
    """Return uint8 codes of maps […, m, m]: 255 times the square root, fine enough for small values too, in half the
    bytes of float16. Values that are not finite become 0, so a row of them is all zero, as no row of a map is."""
    return maps.nan_to_num(0.0, 0.0, 0.0).sqrt().mul(CODE_STEPS).round().to(torch.uint8)


def from_codes(codes: Tensor) -> Tensor:
    """Return maps […, m, m] float32 from their codes; rows of used blocks sum to 1 again."""
    maps = codes.float().square()
    return maps / maps.sum(-1, keepdim=True).clamp(min=1.0)


class AttentionCapture:
    """The pooled maps of some layers, collected in one forward pass of a model prepared by `enable_capture`.

    Pass it to the model's body as the keyword argument `attention_capture`. `length` [B] int64; `rows` [B'] int64 are
    the rows to collect maps of, None for all.
    """

    def __init__(
        self, layers: tuple[int, ...], length: Tensor, seq_len: int, size: int, rows: Tensor | None = None
    ) -> None:
        self.layers, self.rows = layers, rows
        self.members = block_members(length if rows is None else length[rows], seq_len, size)
        self.collected: dict[int, Tensor] = {}

    def collect(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None) -> None:
        if not len(self.members):
            self.collected[layer] = self.members.new_zeros(0, self.members.shape[2], self.members.shape[2])
            return
        if self.rows is not None:
            query, key = query[self.rows], key[self.rows]
            mask = mask if mask is None or len(mask) == 1 else mask[self.rows]
        if query.requires_grad and query.device.type == "cpu":
            self.collected[layer] = pool_weights(_softmax_weights(query, key, mask, scaling), self.members)
        else:
            self.collected[layer] = pool_by_sdpa(query, key, mask, scaling, self.members)

    def maps(self) -> Tensor:
        """Return maps [B', layers, m, m] float32; rows of used blocks sum to 1.

        Raises CometError if a layer did not pass its attention through the capture.
        """
        if missing := [layer for layer in self.layers if layer not in self.collected]:
            raise CometError(
                f"attention of layers {missing} could not be captured: this model does not use the attention "
                "interface of transformers there; build without maps: --attention-layers none"
            )
        maps = torch.stack([self.collected[layer] for layer in self.layers], dim=1)
        # bf16 attention leaves row sums up to 1e-3 from 1
        return maps / maps.sum(-1, keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


def _capturing_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    attention_capture: AttentionCapture | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Run transformers' own SDPA attention; pass query and key to a capture, too."""
    layer: Any = getattr(module, "layer_idx", None)  # which some models do not number
    if attention_capture is not None and layer in attention_capture.layers:
        with torch.autocast(query.device.type, enabled=False):  # autocast would round the maps to half precision
            if attention_capture.rows is None and query.requires_grad and query.device.type == "cpu":
                members = attention_capture.members
                attended, maps = attend_and_pool(query, key, value, attention_mask, scaling, dropout, members)
                attention_capture.collected[layer] = maps
                return attended.transpose(1, 2).contiguous(), None
            attention_capture.collect(layer, query, key, attention_mask, scaling)
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)


def enable_capture(model: PreTrainedModel) -> None:
    """Switch a model to SDPA attention that an AttentionCapture can collect maps from.

    Raises CometError if the model does not support the attention interface.
    """
    # Without the second registration transformers silently drops the padding mask.
    AttentionInterface.register(IMPLEMENTATION, _capturing_sdpa)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
    try:
        model.set_attn_implementation(IMPLEMENTATION)
    except (ValueError, NotImplementedError) as error:
        raise CometError(f"{type(model).__name__} does not support the attention interface: {error}") from None
