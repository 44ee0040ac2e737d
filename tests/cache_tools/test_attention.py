"""Rows of attention against plain softmax, their capture from a real model, and the code that a cache keeps of them."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForMaskedLM, ModernBertConfig, ModernBertModel, PreTrainedModel

from cache_tools.attention import AttentionCapture, attention_rows, decode_keys, enable_capture, encode_weights
from cache_tools.errors import CometError
from cache_tools.signals import WEIGHT_STEPS
from cache_tools.teacher.model import Teacher, load_teacher

LENGTHS = [40, 33, 17, 9, 2, 1]
SEQ_LEN = 40
LAYERS = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def teacher(sample_teacher: Path) -> Teacher:
    return load_teacher(str(sample_teacher))


def plain_model(folder: Path, attention: str) -> PreTrainedModel:
    return AutoModelForMaskedLM.from_pretrained(folder, attn_implementation=attention, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def eager(sample_teacher: Path) -> PreTrainedModel:
    return plain_model(sample_teacher, "eager")


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    """(input_ids, mask) of rows of `LENGTHS`, random tokens, padded."""
    ids = torch.randint(4, 7999, (len(LENGTHS), SEQ_LEN), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(SEQ_LEN) < torch.tensor(LENGTHS)[:, None]
    return ids.masked_fill(~mask, 1), mask


def some_queries(layers: int, slots: int = 3, seed: int = 0) -> Tensor:
    """[B, layers, S]: other valid positions in every row and layer."""
    drawn = torch.rand(len(LENGTHS), layers, slots, generator=torch.Generator().manual_seed(seed))
    return (drawn * torch.tensor(LENGTHS)[:, None, None]).long()


def captured(teacher: Teacher, batch: tuple[Tensor, Tensor], layers: tuple[int, ...], queries: Tensor) -> Tensor:
    capture = AttentionCapture(layers, queries)
    with torch.no_grad():
        teacher.hidden_states(*batch, capture)
    return capture.rows()


def at_queries(attentions: tuple[Tensor, ...], layers: tuple[int, ...], queries: Tensor) -> Tensor:
    """[B, layers, S, L] by definition, from whole attention [B, H, L, L] of every layer."""
    rows = torch.arange(len(queries))[:, None]
    means = [attentions[layer].mean(1)[rows, queries[:, index]] for index, layer in enumerate(layers)]
    return torch.stack(means, dim=1)


def random_attention(seed: int, heads: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(query, key, mask [B, 1, 1, L], softmax weights [B, H, L, L]) with strongly uneven attention."""
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(len(LENGTHS), heads, SEQ_LEN, width, generator=generator) * 2 for _ in range(2))
    mask = (torch.arange(SEQ_LEN) < torch.tensor(LENGTHS)[:, None])[:, None, None]
    scores = query @ key.transpose(2, 3) / width**0.5
    return query, key, mask, scores.masked_fill(~mask, -torch.inf).softmax(3)


@pytest.mark.parametrize("whole_mask", [False, True])
@pytest.mark.parametrize("width", [4, 32])
def test_rows_equal_plain_softmax_with_gradients(width: int, whole_mask: bool) -> None:
    query, key, mask, _ = random_attention(0, 3, width)
    mask = mask.expand(-1, -1, SEQ_LEN, -1) if whole_mask else mask
    at = some_queries(1)[:, 0]
    inputs = query.requires_grad_(), key.requires_grad_()
    weights = (query @ key.transpose(2, 3) / width**0.5).masked_fill(~mask, -torch.inf).softmax(3)
    expected = weights.mean(1)[torch.arange(len(at))[:, None], at]
    found = attention_rows(query, key, mask, None, at)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    mixing = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((rows * mixing).sum(), inputs, retain_graph=True) for rows in (found, expected)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_rows_use_the_scaling_and_need_no_mask() -> None:
    query, key, _, _ = random_attention(0, 2, 8)
    at = some_queries(1)[:, 0]
    expected = (query @ key.transpose(2, 3) * 0.7).softmax(3).mean(1)[torch.arange(len(at))[:, None], at]
    torch.testing.assert_close(attention_rows(query, key, None, 0.7, at), expected, rtol=1e-5, atol=1e-6)


def test_rows_of_half_precision_are_those_of_its_numbers() -> None:
    """The weights themselves are in float32: only queries and keys are rounded."""
    query, key, mask, _ = random_attention(0, 3, 8)
    at = some_queries(1)[:, 0]
    rounded = query.bfloat16(), key.bfloat16()
    found = attention_rows(*rounded, mask, None, at)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, attention_rows(*(x.float() for x in rounded), mask, None, at), rtol=0, atol=0)


@pytest.mark.parametrize("layers", [LAYERS, (1, 3)])
def test_captured_rows_equal_the_eager_attention(
    teacher: Teacher, eager: PreTrainedModel, batch: tuple[Tensor, Tensor], layers: tuple[int, ...]
) -> None:
    queries = some_queries(len(layers))
    with torch.no_grad():
        attentions = eager(batch[0], attention_mask=batch[1], output_attentions=True).attentions
    found = captured(teacher, batch, layers, queries)
    torch.testing.assert_close(found, at_queries(attentions, layers, queries), rtol=0, atol=1e-5)
    assert not torch.allclose(found[:, 0], found[:, 1], atol=1e-3)


@pytest.mark.parametrize("layers", [None, (), (3,), LAYERS])
def test_capture_leaves_the_model_as_it_was_to_the_last_bit(
    sample_teacher: Path, teacher: Teacher, batch: tuple[Tensor, Tensor], layers: tuple[int, ...] | None
) -> None:
    plain = plain_model(sample_teacher, "sdpa")
    capture = None if layers is None else AttentionCapture(layers, some_queries(len(layers)))
    with torch.no_grad():
        expected = plain(batch[0], attention_mask=batch[1]).logits
        hidden = plain.base_model(batch[0], attention_mask=batch[1]).last_hidden_state
        assert torch.equal(teacher.hidden_states(*batch, capture), hidden)
        assert torch.equal(teacher.model(batch[0], attention_mask=batch[1], attention_capture=capture).logits, expected)


def test_the_padding_does_not_change_what_is_captured(teacher: Teacher, batch: tuple[Tensor, Tensor]) -> None:
    """Were the padding mask dropped, a padded row would attend to its padding."""
    queries = some_queries(1)
    together = captured(teacher, batch, (3,), queries)
    for row, length in enumerate(LENGTHS):
        capture = AttentionCapture((3,), queries[row : row + 1])
        with torch.no_grad():
            teacher.hidden_states(batch[0][row : row + 1, :length], torch.ones(1, length, dtype=torch.bool), capture)
        torch.testing.assert_close(capture.rows()[0], together[row, ..., :length], rtol=0, atol=1e-5)
        assert (together[row, ..., length:] == 0).all()


def test_a_layer_that_was_never_captured_is_an_error(teacher: Teacher, batch: tuple[Tensor, Tensor]) -> None:
    message = (
        r"^attention of layers \[4, 9\] could not be captured: this model does not use the attention interface of "
        r"transformers there; build without attention: --attention-layers none$"
    )
    with pytest.raises(CometError, match=message):
        captured(teacher, batch, (3, 4, 9), some_queries(3))


def test_a_model_without_the_attention_interface_is_refused() -> None:
    class Unwilling:
        def set_attn_implementation(self, _: str) -> None:
            raise ValueError("no such attention")

    with pytest.raises(CometError, match=r"^Unwilling does not support the attention interface: no such attention$"):
        enable_capture(Unwilling())  # type: ignore[arg-type]


def test_a_sliding_window_far_from_any_token_spoils_nothing() -> None:
    """There a query has no key at all: its softmax is 0 / 0, and a gradient of it would reach every parameter."""
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}
    config = ModernBertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, local_attention=8, **ids
    )
    torch.manual_seed(0)
    model, length = ModernBertModel(config), torch.tensor([SEQ_LEN, 5])
    tokens, mask = torch.randint(3, 99, (2, SEQ_LEN)), torch.arange(SEQ_LEN) < length[:, None]
    model.set_attn_implementation("eager")
    eager = model(tokens, attention_mask=mask, output_attentions=True)
    enable_capture(model)
    queries = torch.tensor([[[0, 20, 39]], [[0, 4, 30]]])  # the last is far in the padding, as an unused slot may be
    used = torch.tensor([[[1, 1, 1]], [[1, 1, 0]]])[..., None]
    by_definition = at_queries(eager.attentions, (1,), queries)
    capture = AttentionCapture((1,), queries)
    hidden = model(tokens, attention_mask=mask, attention_capture=capture).last_hidden_state
    torch.testing.assert_close(hidden[mask], eager.last_hidden_state[mask])
    torch.testing.assert_close(capture.rows() * used, by_definition.nan_to_num() * used, rtol=0, atol=1e-6)
    loss = hidden[mask].square().sum() + (capture.rows().square() * used).sum()
    of_used = by_definition[0].square().sum() + by_definition[1, :, :2].square().sum()
    expected = eager.last_hidden_state[mask].square().sum() + of_used
    gradients = [torch.autograd.grad(total, list(model.parameters())) for total in (loss, expected)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_weights_of_whole_rows_come_back_within_half_a_step(size: int, seed: int) -> None:
    weight = torch.rand(3, size, generator=torch.Generator().manual_seed(seed)).pow(4).clamp(min=1e-4)
    weight = weight / weight.sum(-1, keepdim=True)
    code = encode_weights(weight)
    assert code.dtype == torch.uint8 and code.max() <= WEIGHT_STEPS
    key, again = decode_keys(torch.zeros(3, size, dtype=torch.int64), code, size + 1)
    assert key.tolist() == [list(range(size))] * 3
    torch.testing.assert_close(again.sum(-1), torch.ones(3))
    assert (again.sqrt() - weight.sqrt()).abs().max() < 2 / WEIGHT_STEPS


def test_keys_follow_from_gaps_and_drawn_ones_share_what_is_left() -> None:
    unused, half = 20, round(0.5**0.5 * WEIGHT_STEPS)
    gap = torch.tensor([[2, 0, 4, unused], [0, unused, unused, unused], [unused] * 4])
    code = torch.tensor([[0, half, 0, 0], [WEIGHT_STEPS, 0, 0, 0], [0] * 4], dtype=torch.uint8)
    key, weight = decode_keys(gap, code, unused)
    assert key.tolist() == [[2, 3, 8, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(
        weight, torch.tensor([[0.25, 0.5, 0.25, 0], [1, 0, 0, 0], [0, 0, 0, 0]]), rtol=0, atol=3e-3
    )
    assert weight[0].sum() == 1 and weight[2].sum() == 0


def test_certain_weights_rounded_to_more_than_one_leave_nothing_to_drawn_keys() -> None:
    code = torch.tensor([[WEIGHT_STEPS, 30, 0]], dtype=torch.uint8)
    _, weight = decode_keys(torch.zeros(1, 3, dtype=torch.int64), code, 9)
    assert weight[0, 2] == 0
    torch.testing.assert_close(weight.sum(), torch.tensor(1.0))
