"""Names of the layers of masked LMs by family, for the teacher they are read from and the student they are copied to.

Most families have layer norm after the residual sum: x = norm(x + attention(x)), then x = norm(x + ffn(x)). ModernBERT
has it before: x = x + attention(norm(x)), then x = x + ffn(norm(x)); its positions are rotary, its ffn is gated.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a cache is read without torch
    from torch import nn

EMBEDDING_NORM = "embeddings.LayerNorm"
POSITIONS = "embeddings.position_embeddings"
TOKEN_TYPES = "embeddings.token_type_embeddings"
QUERY, KEY, VALUE = (f"attention.self.{name}" for name in ("query", "key", "value"))
OUTPUT, ATTENTION_NORM = "attention.output.dense", "attention.output.LayerNorm"
UP, DOWN, FFN_NORM = "intermediate.dense", "output.dense", "output.LayerNorm"

MODERN_EMBEDDING_NORM, MODERN_FINAL_NORM = "embeddings.norm", "final_norm"
MODERN_QKV, MODERN_OUTPUT, MODERN_ATTENTION_NORM = "attn.Wqkv", "attn.Wo", "attn_norm"
MODERN_UP, MODERN_DOWN, MODERN_FFN_NORM = "mlp.Wi", "mlp.Wo", "mlp_norm"
MODERN_EPS = 1e-5  # of the norms of students

GLOBAL, LOCAL = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Anatomy:
    """Names of the parts of a masked LM: its body, and the dense layer, norm and last layer of its head.

    `sites` are the norms of attention and ffn of a layer, and the last matrices of both: their inputs are what a start
    is computed from. The norms come before attention and ffn if there is a `final_norm`.
    """

    body: str
    head_dense: str
    head_norm: str
    decoder: str
    layers: str = "encoder.layer"
    embedding_norm: str = EMBEDDING_NORM
    sites: tuple[str, str, str, str] = (ATTENTION_NORM, FFN_NORM, OUTPUT, DOWN)
    final_norm: str | None = None

    @property
    def norm_first(self) -> bool:
        return self.final_norm is not None

    def embeddings(self, model: "nn.Module", part: str) -> Any:
        return model.get_submodule(f"{self.body}.{part}")

    def layer(self, model: "nn.Module", index: int, part: str) -> Any:
        return model.get_submodule(f"{self.body}.{self.layers}.{index}.{part}")


_ROBERTA = Anatomy("roberta", "lm_head.dense", "lm_head.layer_norm", "lm_head.decoder")
_BERT = Anatomy(
    "bert", "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.decoder"
)
_MODERN_BERT = Anatomy(
    body="model",
    head_dense="head.dense",
    head_norm="head.norm",
    decoder="decoder",
    layers="layers",
    embedding_norm=MODERN_EMBEDDING_NORM,
    sites=(MODERN_ATTENTION_NORM, MODERN_FFN_NORM, MODERN_OUTPUT, MODERN_DOWN),
    final_norm=MODERN_FINAL_NORM,
)
_BY_ARCHITECTURE = {
    "XLMRobertaForMaskedLM": _ROBERTA,
    "RobertaForMaskedLM": _ROBERTA,
    "CamembertForMaskedLM": _ROBERTA,
    "BertForMaskedLM": _BERT,
    "ModernBertForMaskedLM": _MODERN_BERT,
}


def anatomy_of(architecture: str) -> Anatomy | None:
    """Return the anatomy of a class of transformers, None if it is not known."""
    return _BY_ARCHITECTURE.get(architecture)


def why_no_start(model: Any) -> str | None:
    """Return why a model's layers cannot start a student, None if they can."""
    config, name = model.config, type(model).__name__
    anatomy = anatomy_of(name)
    if anatomy is None:
        return f"the layers of {name} are not known; those of {', '.join(_BY_ARCHITECTURE)} are"
    if config.hidden_size % config.num_attention_heads:
        return f"its width {config.hidden_size} is not a multiple of its {config.num_attention_heads} heads"
    if model.get_input_embeddings().weight is not model.get_output_embeddings().weight:
        return "its head does not share the input embeddings"
    return _why_not_modern(config) if anatomy.norm_first else _why_not_post_norm(config)


def _why_not_post_norm(config: Any) -> str | None:
    if config.hidden_act != "gelu":
        return f"its feed-forward has the activation {config.hidden_act}, expected gelu"
    if getattr(config, "position_embedding_type", None) not in (None, "absolute"):
        return f"its positions are {config.position_embedding_type}, expected absolute"
    return None


def _why_not_modern(config: Any) -> str | None:
    """Return what a ModernBERT has that its students could not."""
    size = config.hidden_size // config.num_attention_heads
    expected = {
        "hidden_activation": "gelu",
        "classifier_activation": "gelu",
        "attention_bias": False,
        "mlp_bias": False,
        "norm_bias": False,
        "norm_eps": MODERN_EPS,
        "head_dim": size,
    }
    for name, value in expected.items():
        if (found := getattr(config, name, None)) not in (None, value):
            return f"its {name} is {found}, expected {value}"
    kinds = {str(rope.get("rope_type")) for rope in config.rope_parameters.values()}
    if kinds != {"default"}:
        return f"its rotary positions are {', '.join(sorted(kinds))}, expected default"
    return None
