"""Which teachers a student can start from, and which not."""

from typing import Any

import pytest
from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM, PreTrainedModel

from cache_tools.anatomy import why_no_start

TINY: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "pad_token_id": 0,
}


def modernbert(**changes: Any) -> PreTrainedModel:
    return ModernBertForMaskedLM(ModernBertConfig(**TINY | changes))


def test_students_start_from_a_modernbert() -> None:
    assert why_no_start(modernbert()) is None
    assert why_no_start(modernbert(classifier_bias=True)) is None
    assert why_no_start(modernbert(decoder_bias=False)) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_activation": "silu"}, "its hidden_activation is silu, expected gelu"),
        ({"classifier_activation": "relu"}, "its classifier_activation is relu, expected gelu"),
        ({"attention_bias": True}, "its attention_bias is True, expected False"),
        ({"mlp_bias": True}, "its mlp_bias is True, expected False"),
        ({"norm_bias": True}, "its norm_bias is True, expected False"),
        ({"norm_eps": 1e-12}, "its norm_eps is 1e-12, expected 1e-05"),
        ({"tie_word_embeddings": False}, "its head does not share the input embeddings"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}},
            "its rotary positions are default, linear, expected default",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_what_a_student_could_not_have_is_named(changes: dict[str, Any], reason: str) -> None:
    assert why_no_start(modernbert(**changes)) == reason


def test_heads_of_another_size_than_their_share_are_named() -> None:
    model = modernbert()
    model.config.head_dim = 4
    assert why_no_start(model) == "its head_dim is 4, expected 8"
    model.config.num_attention_heads = 3
    assert why_no_start(model) == "its width 16 is not a multiple of its 3 heads"


def test_other_families_say_what_they_lack() -> None:
    bert = BertForMaskedLM(BertConfig(**TINY, hidden_act="relu"))
    assert why_no_start(bert) == "its feed-forward has the activation relu, expected gelu"
    assert why_no_start(bert.bert).startswith("the layers of BertModel are not known")  # type: ignore[union-attr]
