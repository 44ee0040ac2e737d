"""Training recipes: which losses, with which weights, and the optimiser's settings."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingRecipe:
    """What the student is asked to match. A weight of 0 leaves a loss out.

    `learning_rate` is the peak for a student of width 256; with `scales_with_width` narrower ones take
    proportionally larger steps.
    """

    name: str
    kd_weight: float
    temperature: float
    hard_weight: float
    attention_weight: float
    attention_loss: str  # kl, mse or projection
    dropout: float
    learning_rate: float
    scales_with_width: bool
    epochs: int
    patience: int  # epochs without a better validation after which training stops
    batch_size: int
    differs_from_paper: tuple[str, ...] = ()

    def peak_learning_rate(self, hidden: int) -> float:
        return self.learning_rate * 256 / hidden if self.scales_with_width else self.learning_rate


DEFAULT = TrainingRecipe(
    name="default",
    kd_weight=1.0,
    temperature=1.0,
    hard_weight=0.0,
    attention_weight=0.1,
    attention_loss="kl",
    dropout=0.0,
    learning_rate=1.2e-3,
    scales_with_width=True,
    epochs=15,
    patience=3,
    batch_size=16,
)

PAPER = TrainingRecipe(
    name="paper",
    kd_weight=0.5,
    temperature=2.0,
    hard_weight=0.0,
    attention_weight=0.5,
    attention_loss="projection",
    dropout=0.1,
    learning_rate=5e-5,
    scales_with_width=False,
    epochs=15,
    patience=3,
    batch_size=16,
    differs_from_paper=(
        "logits are matched at masked positions only, over the kept tokens and their tail",
        "attention maps are pooled to m×m before the learned projection",
        "the student starts from the cached teacher embeddings and word frequencies",
        "float32 instead of fp16",
    ),
)

RECIPES = (DEFAULT, PAPER)
