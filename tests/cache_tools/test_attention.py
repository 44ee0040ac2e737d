"""Pooled attention maps: their definition, the SDPA way to them, and their capture from a real model."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForMaskedLM, ModernBertConfig, ModernBertModel, PreTrainedModel

from cache_tools.attention import (
    AttentionCapture,
    attend_and_pool,
    block_members,
    enable_capture,
    from_codes,
    pool_by_sdpa,
    pool_weights,
    query_means,
    to_codes,
)
from cache_tools.errors import CometError
from cache_tools.signals import NO_CODE
from cache_tools.teacher.model import Teacher, load_teacher

LENGTHS = [40, 33, 17, 9, 2, 1]
SEQ_LEN = 40


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


def captured(teacher: Teacher, batch: tuple[Tensor, Tensor], layers: tuple[int, ...], size: int) -> Tensor:
    capture = AttentionCapture(layers, torch.tensor(LENGTHS), SEQ_LEN, size)
    with torch.no_grad():
        teacher.hidden_states(*batch, capture)
    return capture.maps()


def random_attention(
    seed: int, lengths: list[int], seq_len: int, heads: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(query, key, mask [B, 1, 1, L], softmax weights [B, H, L, L]) with strongly uneven attention."""
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(len(lengths), heads, seq_len, width, generator=generator) * 2 for _ in range(2))
    mask = (torch.arange(seq_len) < torch.tensor(lengths)[:, None])[:, None, None]
    scores = query @ key.transpose(2, 3) / width**0.5
    return query, key, mask, scores.masked_fill(~mask, -torch.inf).softmax(3)


def slow_map(weights: Tensor, length: int, size: int) -> Tensor:
    """The docstring of the module read aloud: one row's weights [H, L, L] to its map [m, m], entry by entry."""
    blocks = min(length, size)
    members = [[p for p in range(length) if p * blocks // length == block] for block in range(blocks)]
    pooled = torch.zeros(size, size, dtype=torch.float64)
    for i in range(blocks):
        for j in range(blocks):
            sums = [float(weights[h, q, members[j]].double().sum()) for h in range(len(weights)) for q in members[i]]
            pooled[i, j] = sum(sums) / len(sums)
    return pooled


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 60), st.integers(1, 40), st.integers(0, 20))
def test_blocks_divide_the_valid_tokens_evenly(length: int, size: int, padding: int) -> None:
    members = block_members(torch.tensor([length]), length + padding, size)[0]
    blocks = min(length, size)
    assert members.shape == (length + padding, size)
    assert members[:length].argmax(1).tolist() == [p * blocks // length for p in range(length)]
    assert members.sum(1).tolist() == [1.0] * length + [0.0] * padding
    sizes = members.sum(0).tolist()
    assert max(sizes[:blocks]) - min(sizes[:blocks]) <= 1
    assert min(sizes[:blocks]) >= 1
    assert sizes[blocks:] == [0.0] * (size - blocks)


def test_query_means_average_over_each_block() -> None:
    means = query_means(block_members(torch.tensor([5]), 7, 3))[0]
    expected = [[0.5, 0.5, 0, 0, 0, 0, 0], [0, 0, 0.5, 0.5, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0]]
    assert means.tolist() == expected
    assert query_means(block_members(torch.tensor([2]), 3, 4))[0].sum(1).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("size", [1, 3, 8, 12])
def test_pooled_weights_are_what_the_definition_says(size: int) -> None:
    lengths = [10, 7, 3, 1]
    _, _, _, weights = random_attention(0, lengths, 10, 3, 4)
    maps = pool_weights(weights, block_members(torch.tensor(lengths), 10, size))
    expected = torch.stack([slow_map(w, n, size) for w, n in zip(weights, lengths, strict=True)])
    torch.testing.assert_close(maps.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("size", [1, 5, 8, 9, 20, 32, 40, 64], ids=lambda m: f"m={m}")
@pytest.mark.parametrize("width", [4, 8, 32])
def test_pooling_by_sdpa_equals_pooled_softmax(seed: int, size: int, width: int) -> None:
    """Also where the map is wider than a head, and where rows are shorter than the map."""
    query, key, mask, weights = random_attention(seed, LENGTHS, SEQ_LEN, 3, width)
    members = block_members(torch.tensor(LENGTHS), SEQ_LEN, size)
    expected = pool_weights(weights, members)
    found = pool_by_sdpa(query, key, mask.expand(-1, -1, SEQ_LEN, -1), None, members)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_pooling_by_sdpa_uses_the_scaling_and_needs_no_mask() -> None:
    query, key, _, _ = random_attention(0, [12, 12], 12, 2, 8)
    members = block_members(torch.tensor([12, 12]), 12, 5)
    weights = (query @ key.transpose(2, 3) * 0.7).softmax(3)
    torch.testing.assert_close(
        pool_by_sdpa(query, key, None, 0.7, members), pool_weights(weights, members), rtol=0, atol=2e-6
    )


def test_pooling_in_bfloat16_stays_near_the_exact_maps() -> None:
    query, key, mask, weights = random_attention(0, LENGTHS, SEQ_LEN, 3, 8)
    members = block_members(torch.tensor(LENGTHS), SEQ_LEN, 16)
    found = pool_by_sdpa(query.bfloat16(), key.bfloat16(), mask.expand(-1, -1, SEQ_LEN, -1), None, members)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, pool_weights(weights, members), rtol=0, atol=0.03)


@pytest.mark.parametrize("size", [8, 32, 40])
def test_captured_maps_equal_the_pooled_eager_attention(
    teacher: Teacher, eager: PreTrainedModel, batch: tuple[Tensor, Tensor], size: int
) -> None:
    with torch.no_grad():
        attentions = eager(batch[0], attention_mask=batch[1], output_attentions=True).attentions
    members = block_members(torch.tensor(LENGTHS), SEQ_LEN, size)
    expected = torch.stack([pool_weights(weights, members) for weights in attentions], dim=1)
    torch.testing.assert_close(captured(teacher, batch, (0, 1, 2, 3), size), expected, rtol=0, atol=1e-5)


def test_maps_come_in_the_order_of_the_layers_asked_for(teacher: Teacher, batch: tuple[Tensor, Tensor]) -> None:
    whole = captured(teacher, batch, (0, 1, 2, 3), 8)
    torch.testing.assert_close(captured(teacher, batch, (1, 3), 8), whole[:, [1, 3]], rtol=0, atol=0)
    assert not torch.equal(whole[:, 1], whole[:, 3])


def test_rows_of_used_blocks_sum_to_one_and_the_others_are_zero(teacher: Teacher, batch: tuple[Tensor, Tensor]) -> None:
    maps = captured(teacher, batch, (3,), 16)[:, 0]
    for row, length in enumerate(LENGTHS):
        used = min(length, 16)
        torch.testing.assert_close(maps[row, :used].sum(1), torch.ones(used), rtol=0, atol=1e-6)
        assert (maps[row, used:] == 0).all()
        assert (maps[row, :, used:] == 0).all()
        assert (maps[row, :used, :used] > 0).all()


def test_rows_that_nearly_sum_to_one_are_renormalised() -> None:
    capture = AttentionCapture((0,), torch.tensor([2]), 2, 3)
    capture.collected[0] = torch.tensor([[[0.4, 0.599, 0], [0.2, 0.801, 0], [0, 0, 0]]])
    sums = capture.maps()[0, 0].sum(1)
    torch.testing.assert_close(sums, torch.tensor([1.0, 1.0, 0.0]), rtol=0, atol=1e-7)


@pytest.mark.parametrize("layers", [None, (), (3,), (0, 1, 2, 3)])
def test_capture_leaves_the_model_as_it_was_to_the_last_bit(
    sample_teacher: Path, teacher: Teacher, batch: tuple[Tensor, Tensor], layers: tuple[int, ...] | None
) -> None:
    plain = plain_model(sample_teacher, "sdpa")
    capture = None if layers is None else AttentionCapture(layers, torch.tensor(LENGTHS), SEQ_LEN, 8)
    with torch.no_grad():
        expected = plain(batch[0], attention_mask=batch[1]).logits
        hidden = plain.base_model(batch[0], attention_mask=batch[1]).last_hidden_state
        assert torch.equal(teacher.hidden_states(*batch, capture), hidden)
        assert torch.equal(teacher.model(batch[0], attention_mask=batch[1], attention_capture=capture).logits, expected)


def test_the_padding_does_not_change_what_is_captured(teacher: Teacher, batch: tuple[Tensor, Tensor]) -> None:
    """Were the padding mask dropped, a padded row would attend to its padding."""
    together = captured(teacher, batch, (3,), 8)
    for row, length in enumerate(LENGTHS):
        capture = AttentionCapture((3,), torch.tensor([length]), length, 8)
        with torch.no_grad():
            teacher.hidden_states(batch[0][row : row + 1, :length], torch.ones(1, length, dtype=torch.bool), capture)
        torch.testing.assert_close(capture.maps()[0], together[row], rtol=0, atol=1e-5)


def test_a_layer_that_was_never_captured_is_an_error(teacher: Teacher, batch: tuple[Tensor, Tensor]) -> None:
    message = (
        r"^attention of layers \[4, 9\] could not be captured: this model does not use the attention interface of "
        r"transformers there; build without maps: --attention-layers none$"
    )
    with pytest.raises(CometError, match=message):
        captured(teacher, batch, (3, 4, 9), 8)


def test_a_model_without_the_attention_interface_is_refused() -> None:
    class Unwilling:
        def set_attn_implementation(self, _: str) -> None:
            raise ValueError("no such attention")

    with pytest.raises(CometError, match=r"^Unwilling does not support the attention interface: no such attention$"):
        enable_capture(Unwilling())  # type: ignore[arg-type]


@pytest.mark.parametrize("padded", [False, True])
def test_attention_pooled_in_training_equals_sdpa_with_gradients(padded: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 20, 8, generator=generator).requires_grad_() for _ in range(3))
    length = torch.tensor([20, 11])
    mask = (torch.arange(20) < length[:, None])[:, None, None].expand(-1, 1, 20, -1) if padded else None
    members = block_members(length, 20, 6)
    mixing = torch.randn(2, 6, 6, generator=generator)
    found = []
    for way in ("one matrix", "sdpa twice"):
        if way == "one matrix":
            attended, maps = attend_and_pool(query, key, value, mask, 0.4, 0.0, members)
        else:
            attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=0.4)
            maps = pool_by_sdpa(query, key, mask, 0.4, members)
        loss = attended.square().sum() + (maps * mixing).sum()
        found.append((attended, maps, *torch.autograd.grad(loss, (query, key, value))))
    for ours, reference in zip(*found, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [None, [1]])
def test_a_sliding_window_far_from_any_token_spoils_nothing(rows: list[int] | None) -> None:
    """There a query has no key at all: its softmax is 0 / 0, and the next layer would spread it to every token."""
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
    which = slice(None) if rows is None else rows
    by_definition = pool_weights(eager.attentions[1][which], block_members(length[which], SEQ_LEN, 8))
    found = []
    for training in (True, False):
        capture = AttentionCapture((1,), length, SEQ_LEN, 8, None if rows is None else torch.tensor(rows))
        with torch.set_grad_enabled(training):
            hidden = model(tokens, attention_mask=mask, attention_capture=capture).last_hidden_state
        torch.testing.assert_close(hidden[mask], eager.last_hidden_state[mask])
        torch.testing.assert_close(capture.maps()[:, 0], by_definition, rtol=0, atol=1e-6)
        found.append(hidden[mask].square().sum() + capture.maps().square().sum())
    expected = eager.last_hidden_state[mask].square().sum() + by_definition.square().sum()
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in (found[0], expected)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("rows", [[0, 2], [1], []])
def test_maps_of_some_rows_are_theirs_among_all(
    teacher: Teacher, sample_teacher: Path, batch: tuple[Tensor, Tensor], rows: list[int], training: bool
) -> None:
    """In training without the one matrix that serves attention and maps."""
    student = plain_model(sample_teacher, "sdpa")
    enable_capture(student)
    whole = captured(teacher, batch, (0, 3), 8)
    capture = AttentionCapture((0, 3), torch.tensor(LENGTHS), SEQ_LEN, 8, torch.tensor(rows, dtype=torch.int64))
    with torch.set_grad_enabled(training):
        hidden = student.base_model(batch[0], attention_mask=batch[1], attention_capture=capture)
    assert capture.maps().requires_grad == (training and bool(rows))
    torch.testing.assert_close(capture.maps(), whole[rows], rtol=0, atol=1e-5)
    with torch.no_grad():
        valid = batch[1]
        expected = teacher.hidden_states(*batch, None)
        torch.testing.assert_close(hidden.last_hidden_state[valid], expected[valid], rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_codes_of_maps_come_back_within_half_a_step(size: int, seed: int) -> None:
    maps = torch.rand(2, size, size, generator=torch.Generator().manual_seed(seed)).pow(8).softmax(-1)
    codes = to_codes(maps)
    assert codes.dtype == torch.uint8
    assert (codes != NO_CODE).any(-1).all(), "no line of a map is all 255, which means that there is none"
    assert (codes / 255 - maps.sqrt()).abs().max() <= 0.5 / 255 + 1e-6
    again = from_codes(codes)
    torch.testing.assert_close(again.sum(-1), torch.ones(2, size))
    assert (again.sqrt() - maps.sqrt()).abs().max() < 1.5 / 255


def test_unused_blocks_and_overflow_keep_their_codes() -> None:
    maps = torch.tensor([[[0.25, 0.75], [0.0, 0.0]], [[float("nan"), 1.0], [float("inf"), 0.0]]])
    assert to_codes(maps).tolist() == [[[128, 221], [0, 0]], [[0, 255], [0, 0]]]
    assert from_codes(to_codes(maps))[0, 1].tolist() == [0.0, 0.0]
