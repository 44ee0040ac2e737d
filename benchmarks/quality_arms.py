"""The ways to train a student that quality.py compares, and the teacher in the loop as the best that can be had."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, XLMRobertaForMaskedLM

from cache_tools import Cache
from cache_tools.pooling import AttentionCapture
from cache_tools.teacher.model import Teacher
from comet.data import CacheRows, collate, shards_of
from comet.distillation import arrays_needed, choose_vocabulary, training_arguments
from comet.distiller import Distiller, match_layers
from comet.losses import attention_kl
from comet.recipes import DEFAULT, PAPER, TrainingRecipe
from comet.settings import StudentConfig
from comet.student import choose_shape, new_student
from comet.trainer import DistillationTrainer
from comet.validation import validation_rows
from comet.vocabulary import StudentVocabulary, in_vocabulary

LOGITS = replace(DEFAULT, name="logits", kd_weight=1.0, hard_weight=0.0, attention_weight=0.0)
MAPS = replace(LOGITS, name="maps", attention_weight=0.1)
PLAIN = replace(LOGITS, name="plain", kd_weight=0.0, hard_weight=1.0)


@dataclass(frozen=True)
class Arm:
    """One way to train: from which cache, with which recipe. `fine_tuned` arms are compared on a task, too."""

    name: str
    cache: str  # a key of CACHES
    recipe: TrainingRecipe = LOGITS
    vocabulary: str = "full"
    init: str = "cache"
    online: bool = False
    fine_tuned: bool = False


CACHES: dict[str, dict[str, Any]] = {
    "top-64": {"top_k": 64},
    "top-16": {"top_k": 16},
    "sample-128": {"top_k": 128, "keep": "threshold"},
    "sample-64": {"top_k": 64, "keep": "threshold"},
    "sample-32": {"top_k": 32, "keep": "threshold"},
    "sample-16": {"top_k": 16, "keep": "threshold"},
    "sample-16, two views": {"top_k": 16, "keep": "threshold", "views": 2},
    "sample-64, T = 1 and 2": {"top_k": 64, "keep": "threshold", "temperatures": (1.0, 2.0)},
    "sample-64, 32 × 32": {"top_k": 64, "keep": "threshold", "attention_size": 32},
    "sample-64, all layers": {"top_k": 64, "keep": "threshold", "attention_layers": "all"},
}
"""What the caches hold other than one map of 16 × 16, and temperature 1 (of a sample) or 1 and 2 (of the best)."""

ARMS = (
    Arm("plain", "sample-64", PLAIN, fine_tuned=True),
    Arm("online", "sample-64", online=True, fine_tuned=True),
    Arm("online, full maps", "sample-64", MAPS, online=True, fine_tuned=True),
    Arm("top-64", "top-64", fine_tuned=True),
    Arm("sample-128", "sample-128"),
    Arm("sample-64", "sample-64", fine_tuned=True),
    Arm("top-16", "top-16"),
    Arm("sample-32", "sample-32"),
    Arm("sample-16", "sample-16"),
    Arm("sample-16, two views", "sample-16, two views"),
    Arm("top-64, residual", "top-64", replace(LOGITS, name="residual", logit_loss="residual")),
    Arm("top-64, T = 2", "top-64", replace(LOGITS, name="hot", temperature=2.0)),
    Arm("sample-64, T = 2", "sample-64, T = 1 and 2", replace(LOGITS, name="hot", temperature=2.0)),
    Arm("sample-64, half true tokens", "sample-64", replace(LOGITS, name="half", kd_weight=0.5, hard_weight=0.5)),
    Arm("sample-64, map", "sample-64", MAPS, fine_tuned=True),
    Arm("sample-64, map × 10", "sample-64", replace(MAPS, name="maps10", attention_weight=1.0)),
    Arm("sample-64, map of 32 × 32", "sample-64, 32 × 32", MAPS),
    Arm("sample-64, maps of all layers", "sample-64, all layers", MAPS),
    Arm("paper", "top-64", PAPER),
    Arm("sample-64, trimmed", "sample-64", vocabulary="trimmed"),
    Arm("sample-64, random start", "sample-64", init="random"),
    Arm("plain, random start", "sample-64", PLAIN, init="random"),
)


@dataclass(frozen=True)
class Said:
    """What the teacher said of one row: features at its targets [n, H] and full maps [layers, L, L]."""

    features: Tensor
    maps: Tensor


class TeacherInTheLoop:
    """The teacher's own forward pass, row by row; what it said of a row once, it is not asked again."""

    def __init__(self, teacher: Teacher, layers: tuple[int, ...], seq_len: int) -> None:
        self.teacher, self.layers, self.seq_len = teacher, layers, seq_len
        self.said: dict[bytes, Said] = {}

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log-probabilities [T, V] at the targets and maps [B, layers, L, L] that are not pooled."""
        ids, length, row = batch["input_ids"], batch["length"], batch["target_row"]
        keys = [row_ids.numpy().tobytes() for row_ids in ids]
        if any(key not in self.said for key in keys):
            mask = torch.arange(ids.shape[1]) < length[:, None]
            capture = AttentionCapture(self.layers, length, ids.shape[1], self.seq_len)
            hidden = self.teacher.hidden_states(ids, mask, capture)
            features, maps = self.teacher.transform(hidden[row, batch["target_position"]]), capture.maps()
            self.said |= {key: Said(features[row == i], maps[i]) for i, key in enumerate(keys)}
        said = [self.said[key] for key in keys]
        logits = self.teacher.head.logits(torch.cat([one.features for one in said]))
        return logits.log_softmax(1), torch.stack([one.maps for one in said])


class OnlineDistiller(Distiller):
    """The teacher in the loop: dense logits at every target and attention maps that are not pooled."""

    def __init__(
        self, student: XLMRobertaForMaskedLM, cache: Any, recipe: TrainingRecipe, teacher: TeacherInTheLoop
    ) -> None:
        super().__init__(student, cache, recipe)
        self.teacher = [teacher]  # not a module of its own: nothing of it is trained or saved

    def forward(
        self, progress: float = 0.0, targets: float | None = None, rows: float | None = None, **batch: Tensor
    ) -> dict[str, Tensor]:
        recipe, (teacher,) = self.training_recipe, self.teacher
        length, seq_len = batch["length"], batch["input_ids"].shape[1]
        mask = torch.arange(seq_len) < length[:, None]
        layers = tuple(student for _, student in self.matched)
        ours = AttentionCapture(layers, length, seq_len, teacher.seq_len)
        p, maps = teacher(batch)  # [T, V], [B, layers, L, L]
        body = self.student.roberta(batch["input_ids"], attention_mask=mask, attention_capture=ours if layers else None)
        head = self.student.lm_head
        hidden = body.last_hidden_state[batch["target_row"], batch["target_position"]]  # [T, H]
        q = head.decoder(head.layer_norm(torch.nn.functional.gelu(head.dense(hidden)))).log_softmax(1)
        parts = {"kd": (p.exp() * (p - q)).sum(1).mean()}
        if layers:
            theirs = maps[:, [teacher.layers.index(layer) for layer, _ in self.matched]]
            parts["attention"] = attention_kl(theirs, ours.maps(), length).mean()
        weights = {"kd": recipe.kd_weight, "attention": recipe.attention_weight}
        return {"loss": torch.stack([weights[n] * part for n, part in parts.items()]).sum()} | parts


def teacher_in_the_loop(teacher: Teacher, cache: Cache, student_layers: int) -> TeacherInTheLoop:
    layers = tuple(layer for layer, _ in match_layers(cache.recipe, student_layers))
    return TeacherInTheLoop(teacher, layers, cache.recipe.seq_len)


def train(
    arm: Arm, cache: Cache, online: Callable[[int], TeacherInTheLoop], student: str, steps: int, seed: int, folder: Path
) -> tuple[XLMRobertaForMaskedLM, StudentVocabulary]:
    """The student of the last step, and its vocabulary. `online` gives the teacher for a student of so many layers."""
    vocabulary = choose_vocabulary(arm.vocabulary, [cache])
    shape = choose_shape(student, cache, cache.recipe.vocab_size)
    model = new_student(shape, [cache], vocabulary, arm.recipe.dropout, seed, arm.init == "cache")
    config = StudentConfig(folder, student=student, recipe=arm.recipe, steps=steps, seed=seed)
    distiller = (
        OnlineDistiller(model, cache.recipe, arm.recipe, online(shape.layers))
        if arm.online
        else Distiller(model, cache.recipe, arm.recipe, vocabulary)
    )
    arguments = training_arguments(replace(config, arguments=(("eval_strategy", "no"),)), shape)
    arguments.output_dir = str(folder)
    trainer = DistillationTrainer(
        distiller,
        arguments,
        CacheRows(shards_of([cache], "train"), arrays_needed(cache, distiller, vocabulary)),
        validation_rows(shards_of([cache], "validation")),
        collator=lambda arrays: in_vocabulary(collate(arrays), vocabulary),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return model.eval(), vocabulary
