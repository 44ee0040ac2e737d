"""Numbers of a teacher in half precision that half precision cannot hold: logits and scores beyond 65,504."""

from typing import Any

import pytest
import torch
from helpers.dense import TEMPERATURES, random_seen
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cache_tools.attention import attention_rows
from cache_tools.teacher.head import BlockedHead, Head
from cache_tools.teacher.threshold import keep_threshold_sample
from cache_tools.teacher.topk import keep_topk

TARGETS, WIDTH, VOCABULARY, K = 5, 64, 400, 16
HALVES = [torch.float16, torch.bfloat16]
LARGEST = torch.finfo(torch.float16).max


class ProductsOfAGpu(TorchDispatchMode):
    """On the CPU the product that only GPUs have: of two halves, added up and written in float32."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.mm.dtype_out:
            left, right, dtype = args
            return torch.mm(left.to(dtype), right.to(dtype), out=kwargs["out"])
        return func(*args, **(kwargs or {}))


def large_head(dtype: torch.dtype) -> tuple[Tensor, Head]:
    generator = torch.Generator().manual_seed(0)
    features = (torch.randn(TARGETS, WIDTH, generator=generator) * 200).to(dtype)
    weight = (torch.randn(VOCABULARY, WIDTH, generator=generator) * 50).to(dtype)
    return features, Head(weight, torch.randn(VOCABULARY, generator=generator).to(dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_a_half_precision_head_gives_the_values_of_a_float32_one(dtype: torch.dtype) -> None:
    """Of the same numbers: the path that a GPU takes, which keeps its weights in half precision."""
    features, head = large_head(dtype)
    assert head.logits(features).abs().max() > 2 * LARGEST, "else nothing could overflow"
    seen = random_seen(0, VOCABULARY)
    exact, on_a_gpu = BlockedHead(head, seen), BlockedHead(head, seen)
    on_a_gpu.weight = on_a_gpu.weight.to(dtype)
    offset = torch.arange(TARGETS, dtype=torch.float64) / TARGETS
    with ProductsOfAGpu():
        found = keep_topk(features, on_a_gpu, K, TEMPERATURES)
        sample = keep_threshold_sample(features, on_a_gpu, K, TEMPERATURES, offset)
    for name, values in vars(keep_topk(features, exact, K, TEMPERATURES)).items():
        torch.testing.assert_close(getattr(found, name), values, rtol=0, atol=0)
    for name, values in vars(keep_threshold_sample(features, exact, K, TEMPERATURES, offset)).items():
        torch.testing.assert_close(getattr(sample, name), values, rtol=0, atol=0)
    best = head.logits(features).double().log_softmax(1).topk(K).values
    torch.testing.assert_close(found.logprob.double(), best, rtol=1e-5, atol=0.05)  # float32 logits of 10⁵


@pytest.mark.parametrize("dtype", HALVES)
def test_scores_of_attention_do_not_overflow(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 3, 9, 64, generator=generator) * 100 for _ in range(2))  # [B, H, L, d]
    query, key = query.to(dtype), key.to(dtype)
    scores = query.double() @ key.double().transpose(2, 3)
    assert scores.abs().max() > 2 * LARGEST, "else nothing could overflow"
    at = torch.tensor([[0, 4, 8], [1, 2, 3]])
    expected = (scores / 8).softmax(3).mean(1)[torch.arange(2)[:, None], at]
    rows = attention_rows(query, key, None, None, at)
    torch.testing.assert_close(rows.double(), expected, rtol=0, atol=1e-3)
