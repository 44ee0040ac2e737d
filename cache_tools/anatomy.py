"""Where the layers of a masked LM lie, by family, for the teacher they are read from and the student they go to.

Families with layer norm after the residual sum: x = norm(x + attention(x)), then x = norm(x + ffn(x)).
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

EMBEDDING_NORM = "embeddings.LayerNorm"
POSITIONS = "embeddings.position_embeddings"
TOKEN_TYPES = "embeddings.token_type_embeddings"
QUERY, KEY, VALUE = (f"attention.self.{name}" for name in ("query", "key", "value"))
OUTPUT, ATTENTION_NORM = "attention.output.dense", "attention.output.LayerNorm"
UP, DOWN, FFN_NORM = "intermediate.dense", "output.dense", "output.LayerNorm"


@dataclass(frozen=True)
class Anatomy:
    """Names of the parts of a masked LM: its body, and the dense layer, norm and last layer of its head."""

    body: str
    head_dense: str
    head_norm: str
    decoder: str

    def embeddings(self, model: nn.Module, part: str) -> Any:
        return model.get_submodule(f"{self.body}.{part}")

    def layer(self, model: nn.Module, index: int, part: str) -> Any:
        return model.get_submodule(f"{self.body}.encoder.layer.{index}.{part}")


_ROBERTA = Anatomy("roberta", "lm_head.dense", "lm_head.layer_norm", "lm_head.decoder")
_BERT = Anatomy(
    "bert", "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.decoder"
)
_BY_ARCHITECTURE = {
    "XLMRobertaForMaskedLM": _ROBERTA,
    "RobertaForMaskedLM": _ROBERTA,
    "CamembertForMaskedLM": _ROBERTA,
    "BertForMaskedLM": _BERT,
}


def anatomy_of(architecture: str) -> Anatomy | None:
    """Return the anatomy of a class of transformers, None if it is not known."""
    return _BY_ARCHITECTURE.get(architecture)


def why_no_start(model: Any) -> str | None:
    """Return why a model's layers cannot start a student, None if they can."""
    config, name = model.config, type(model).__name__
    if anatomy_of(name) is None:
        return f"the layers of {name} are not known; those of {', '.join(_BY_ARCHITECTURE)} are"
    if config.hidden_act != "gelu":
        return f"its feed-forward has the activation {config.hidden_act}, expected gelu"
    if getattr(config, "position_embedding_type", None) not in (None, "absolute"):
        return f"its positions are {config.position_embedding_type}, expected absolute"
    if config.hidden_size % config.num_attention_heads:
        return f"its width {config.hidden_size} is not a multiple of its {config.num_attention_heads} heads"
    if model.get_input_embeddings().weight is not model.get_output_embeddings().weight:
        return "its head does not share the input embeddings"
    return None
