"""The families of students: which masked LM of transformers a student is, by the architecture of its teacher."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from cache_tools.attention import AttentionCapture
from cache_tools.models import head_transform
from cache_tools.store.recipe import Recipe

LONGEST = 512  # tokens that a student reads, more if the rows of its caches are longer
SPECIAL_IDS = {"pad_token_id": "pad_id", "bos_token_id": "bos_id", "eos_token_id": "eos_id"}
Read = Callable[..., Tensor]
"""Returns a region of an array of a start, given its name and slices."""
NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})
XLM_R_IDS = {"pad_id": 1, "bos_id": 0, "eos_id": 2}


@dataclass(frozen=True)
class StudentShape:
    """A body of `layers` of width `hidden` with `heads` heads and a feed-forward of `intermediate`."""

    name: str
    layers: int
    hidden: int
    heads: int
    intermediate: int

    def __str__(self) -> str:
        return f"{self.name} ({self.layers} layers × {self.hidden}, {self.heads} heads, FFN {self.intermediate})"


@dataclass(frozen=True)
class StudentFamily:
    """How a plain masked LM of transformers is made from a shape, and how its parts are reached.

    `architecture` is its class; `settings` are fields of its config and `dropouts` the names of those of dropout;
    `special_ids` maps others to ids of a recipe. `dense` is the path of the first linear layer [H, H] of its head.
    `model_inputs` are what its tokenizer returns. With `counts_from_padding` positions begin after the padding id.
    The width of a head must be a multiple of `head_multiple`.
    """

    name: str
    architecture: str
    dense: str
    dropouts: tuple[str, ...] = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    settings: Mapping[str, Any] = field(default_factory=dict)
    special_ids: Mapping[str, str] = field(default_factory=lambda: SPECIAL_IDS)
    model_inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    counts_from_padding: bool = False
    head_multiple: int = 1

    @property
    def model_class(self) -> Any:
        # by name, so that only the module of the family in use is imported
        return getattr(transformers, self.architecture)

    @property
    def model_type(self) -> str:
        """The `model_type` in the config.json of such a model."""
        return self.model_class.config_class.model_type

    def dropout(self, rate: float) -> dict[str, float]:
        """Return the config's fields for this rate of dropout everywhere."""
        return dict.fromkeys(self.dropouts, rate)

    def config(
        self,
        shape: StudentShape,
        vocab_size: int,
        dropout: float = 0.0,
        special: Mapping[str, int] = XLM_R_IDS,
        seq_len: int = LONGEST,
        others: Mapping[str, Any] = NO_SETTINGS,
    ) -> PretrainedConfig:
        """Return the config of a student that reads at least `seq_len` tokens.

        `special` maps pad_id, bos_id and eos_id to ids of the student. `others` are fields that this student has
        instead of those of its family.
        """
        offset = special["pad_id"] + 1 if self.counts_from_padding else 0
        config: PretrainedConfig = self.model_class.config_class(
            vocab_size=vocab_size,
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=shape.intermediate,
            max_position_embeddings=max(LONGEST, seq_len) + offset,
            tie_word_embeddings=True,
            **{name: special[role] for name, role in self.special_ids.items()},
            **self.dropout(dropout),
            **{**self.settings, **others},
        )
        return config

    def model(self, config: PretrainedConfig) -> PreTrainedModel:
        """Return a masked LM with random weights."""
        model: PreTrainedModel = self.model_class(config)
        return model

    def head_dense(self, student: PreTrainedModel) -> nn.Linear:
        """Return the first linear layer of the head, weight [H, H]."""
        layer = student.get_submodule(self.dense)
        assert isinstance(layer, nn.Linear), type(layer)
        return layer


XLM_R = StudentFamily(
    name="XLM-R",
    architecture="XLMRobertaForMaskedLM",
    dense="lm_head.dense",
    settings={"type_vocab_size": 1, "layer_norm_eps": 1e-5},
    counts_from_padding=True,
)
BERT = StudentFamily(
    name="BERT",
    architecture="BertForMaskedLM",
    dense="cls.predictions.transform.dense",
    settings={"type_vocab_size": 2},
    model_inputs=("input_ids", "token_type_ids", "attention_mask"),
)
MODERN_BERT = StudentFamily(
    name="ModernBERT",
    architecture="ModernBertForMaskedLM",
    dense="head.dense",
    dropouts=("attention_dropout", "embedding_dropout", "mlp_dropout"),
    # the bias takes the token frequencies; a local layer could not look where a global one of the teacher does, so they
    # are local only in students that begin with the teacher's
    settings={"decoder_bias": True, "global_attn_every_n_layers": 1},
    special_ids=SPECIAL_IDS | {"cls_token_id": "bos_id", "sep_token_id": "eos_id"},
    head_multiple=2,  # rotary positions turn pairs of dimensions
)
FAMILIES = {family.architecture: family for family in (XLM_R, BERT, MODERN_BERT)}


def family_of(recipe: Recipe) -> StudentFamily:
    """Return the family of the students of a teacher: its own, or XLM-R's if no student can be of that."""
    return FAMILIES.get(recipe.teacher_architecture, XLM_R)


def word_embeddings(student: PreTrainedModel) -> Tensor:
    """Return the weight [V, H] of the word embeddings."""
    weight: Tensor = student.get_input_embeddings().weight  # type: ignore[assignment]
    return weight


def hidden_states(
    student: PreTrainedModel, words: Tensor, mask: Tensor, capture: AttentionCapture | None = None
) -> Tensor:
    """Return the last layer's hidden states [B, L, H] from word embeddings `words` [B, L, H].

    `mask` [B, L] is true before the padding, which is at the end.
    """
    body: Any = student.base_model
    hidden: Tensor = body(
        inputs_embeds=words, attention_mask=mask, attention_capture=capture, use_cache=False
    ).last_hidden_state
    return hidden


def head_features(student: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Return the inputs [T, H] of the head's last layer from hidden states [T, H]."""
    transform = head_transform(student)
    assert transform is not None, type(student)
    return transform(hidden)


def output_layer(student: PreTrainedModel) -> nn.Linear:
    """Return the head's last layer: weight [V, H], which is that of the word embeddings, and bias [V]."""
    layer = student.get_output_embeddings()
    assert isinstance(layer, nn.Linear), type(layer)
    return layer
