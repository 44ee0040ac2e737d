"""What teachers and students share as transformers models."""

import sys
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    CamembertConfig,
    CamembertModel,
    PretrainedConfig,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from cache_tools.models import max_positions


@pytest.mark.parametrize(
    ("config_class", "model_class"),
    [(XLMRobertaConfig, XLMRobertaModel), (RobertaConfig, RobertaModel), (CamembertConfig, CamembertModel)],
)
def test_a_model_reads_as_many_tokens_as_it_has_positions(config_class: Any, model_class: Any) -> None:
    """RoBERTa's first positions are never used: one token more than `max_positions` has no embedding."""
    config = config_class(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=12, pad_token_id=1,
    )  # fmt: skip
    model = model_class(config).eval()
    longest = max_positions(config)
    assert longest == 10
    model(torch.full((1, longest), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, longest + 1), 5))


def test_other_models_use_all_their_positions() -> None:
    assert max_positions(BertConfig(max_position_embeddings=12)) == 12
    assert max_positions(PretrainedConfig()) == sys.maxsize
