"""The ways to train a student that quality.py compares, and the teacher in the loop as the best that can be had."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback, XLMRobertaForMaskedLM
from transformers.trainer_utils import IntervalStrategy

from cache_tools import Cache
from cache_tools.attention import AttentionCapture
from cache_tools.teacher.model import Teacher
from comet.preparation import choose_vocabulary, training_arguments
from comet.settings import StudentConfig
from comet.student.model import new_student
from comet.student.shape import choose_shape
from comet.student.vocabulary import StudentVocabulary
from comet.train.dataset import CacheRows, arrays_to_read, shards_of, student_collator
from comet.train.distiller import Distiller, match_layers
from comet.train.losses import SampledRows, attention_cross_entropy
from comet.train.objective import DEFAULT, PAPER, Objective
from comet.train.trainer import DistillationTrainer
from comet.train.validation import validation_rows

NO_ATTENTION = replace(DEFAULT, name="no attention", attention_weight=0.0)
TRUE_TOKENS = replace(DEFAULT, name="true tokens", kd_weight=0.0, hard_weight=1.0)
PLAIN = replace(TRUE_TOKENS, name="plain", attention_weight=0.0)


@dataclass(frozen=True)
class Arm:
    """One way to train: from which cache, with which objective. `fine_tuned` arms are compared on a task, too."""

    name: str
    cache: str  # a key of CACHES
    objective: Objective = DEFAULT
    vocabulary: str = "full"
    init: str = "start"
    online: bool = False
    whole_maps: bool = True  # online, or else the attention of the cache
    fine_tuned: bool = False


CACHES: dict[str, dict[str, Any]] = {
    "default": {},
    "four views": {"views": 4},
    "four views, T = 1 and 2": {"views": 4, "temperatures": (1.0, 2.0)},
    "views as by default": {"views": None},
    "views that the teacher continues": {"continue_views": 4},
    "sample of 512": {"top_k": 512, "rows_per_shard": 128},
    "sample of 256": {"top_k": 256},
    "sample of 128": {"top_k": 128},
    "sample of 32": {"top_k": 32},
    "sample of 16": {"top_k": 16},
    "best 64": {"keep": "topk", "temperatures": (1.0, 2.0)},
    "best 16": {"keep": "topk", "top_k": 16},
    "T = 1 and 2": {"temperatures": (1.0, 2.0)},
    "last layer": {"attention_layers": "last"},
    "8 keys": {"attention_keys": 8},
    "12 keys": {"attention_keys": 12},
    "one query in 4, 8 keys": {"attention_queries": 4, "attention_keys": 8},
    "one query in 16": {"attention_queries": 16},
    "compact": {"top_k": 44, "attention_queries": 16},
    "one query in 32": {"attention_queries": 32},
    "whole maps": {"attention_queries": 1, "attention_keys": 128, "rows_per_shard": 256},
}
"""What the caches hold other than by default, with one view of the text."""

ARMS = (
    Arm("plain", "default", PLAIN, fine_tuned=True),
    Arm("true tokens and attention", "default", TRUE_TOKENS),
    Arm("online", "default", online=True, fine_tuned=True),
    Arm("online, attention of the cache", "default", online=True, whole_maps=False),
    Arm("online, no attention", "default", NO_ATTENTION, online=True),
    Arm("default", "default", fine_tuned=True),
    Arm("no attention", "default", NO_ATTENTION),
    Arm("attention of the last layer", "last layer"),
    Arm("8 keys of a query", "8 keys"),
    Arm("one query in 16", "one query in 16"),
    Arm("one query in 32", "one query in 32"),
    Arm("whole maps", "whole maps"),
    Arm("attention weight 0.3", "default", replace(DEFAULT, name="attention 0.3", attention_weight=0.3)),
    Arm("attention weight 3", "default", replace(DEFAULT, name="attention 3", attention_weight=3.0)),
    Arm("sample of 128", "sample of 128"),
    Arm("sample of 32", "sample of 32", fine_tuned=True),
    Arm("sample of 16", "sample of 16"),
    Arm("best 64", "best 64"),
    Arm("best 16", "best 16", fine_tuned=True),
    Arm("best 64, residual", "best 64", replace(DEFAULT, name="residual", logit_loss="residual")),
    Arm("best 64, T = 2", "best 64", replace(DEFAULT, name="hot", temperature=2.0)),
    Arm("sample of 64, T = 2", "T = 1 and 2", replace(DEFAULT, name="hot", temperature=2.0)),
    Arm("half true tokens", "default", replace(DEFAULT, name="half", kd_weight=0.5, hard_weight=0.5)),
    Arm("paper", "best 64", PAPER),
    Arm("trimmed", "default", vocabulary="trimmed"),
    Arm("trimmed, online", "default", vocabulary="trimmed", online=True),
    Arm("trimmed, sample of 256", "sample of 256", vocabulary="trimmed"),
    Arm("trimmed, compact", "compact", vocabulary="trimmed"),
    Arm("embeddings only", "default", init="cache"),
    Arm("random start", "default", init="random"),
    Arm("plain, random start", "default", PLAIN, init="random"),
)


@dataclass(frozen=True)
class Said:
    """What the teacher said of one row: features at its targets [n, H] and full maps [layers, L, L]."""

    features: Tensor
    maps: Tensor


class TeacherInTheLoop:
    """The teacher's own forward pass, row by row. If it `remembers`, it does not run on a row again."""

    def __init__(self, teacher: Teacher, layers: tuple[int, ...], seq_len: int, remembers: bool = True) -> None:
        self.teacher, self.layers, self.seq_len, self.remembers = teacher, layers, seq_len, remembers
        self.said: dict[bytes, Said] = {}

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log-probabilities [T, V] at the targets and whole maps [B, layers, L, L]."""
        ids, length, row = batch["input_ids"], batch["length"], batch["target_row"]
        keys = [row_ids.numpy().tobytes() for row_ids in ids]
        if any(key not in self.said for key in keys):
            mask = torch.arange(ids.shape[1]) < length[:, None]
            capture = AttentionCapture(self.layers, every_query(len(ids), len(self.layers), ids.shape[1]))
            hidden = self.teacher.hidden_states(ids, mask, capture)
            features, maps = self.teacher.transform(hidden[row, batch["target_position"]]), capture.rows()
            self.said |= {key: Said(features[row == i], maps[i]) for i, key in enumerate(keys)}
        said = [self.said[key] for key in keys]
        if not self.remembers:
            self.said.clear()
        logits = self.teacher.head.logits(torch.cat([one.features for one in said]))
        return logits.log_softmax(1), torch.stack([one.maps for one in said])


def every_query(rows: int, layers: int, seq_len: int) -> Tensor:
    """The queries [B, layers, L] of whole maps."""
    return torch.arange(seq_len).expand(rows, layers, -1)


def all_keys(maps: Tensor, length: Tensor) -> SampledRows:
    """Whole maps [B, layers, L, L] as a sample of everything: queries of padding weigh nothing."""
    is_query = torch.arange(maps.shape[2]) < length[:, None]  # [B, L]
    return SampledRows(torch.arange(maps.shape[3]).expand_as(maps), maps * is_query[:, None, :, None], length)


class OnlineDistiller(Distiller):
    """The teacher in the loop: dense logits at every target, and whole attention maps or the cache's sample.

    With a trimmed vocabulary the teacher is conditioned on the tokens of the corpus, as with a cache.
    """

    def __init__(
        self,
        student: XLMRobertaForMaskedLM,
        cache: Any,
        objective: Objective,
        vocabulary: StudentVocabulary,
        teacher: TeacherInTheLoop,
        whole_maps: bool,
    ) -> None:
        super().__init__(student, cache, objective, vocabulary)
        self.scored = torch.from_numpy(vocabulary.teacher_id)[~self.unscored.view(-1)]  # as the teacher's ids
        self.teacher_id = torch.from_numpy(vocabulary.teacher_id)
        self.teacher = [teacher]  # not a module of its own: nothing of it is trained or saved
        self.whole_maps = whole_maps

    def forward(
        self, progress: float = 0.0, targets: float | None = None, rows: float | None = None, **batch: Tensor
    ) -> dict[str, Tensor]:
        recipe, (teacher,) = self.objective, self.teacher
        length, seq_len = batch["length"], batch["input_ids"].shape[1]
        mask = torch.arange(seq_len) < length[:, None]
        layers = tuple(student for _, student in self.matched)
        if self.whole_maps:
            ours = AttentionCapture(layers, every_query(len(length), len(layers), seq_len))
        else:
            ours = AttentionCapture(layers, batch["attention_query"][:, self.cached_index])
        of_all, maps = teacher(batch | {"input_ids": self.teacher_id[batch["input_ids"]]})  # [T, V], [B, layers, L, L]
        mass = of_all[:, self.scored].logsumexp(1)  # [T] of the tokens that the student is scored for
        p = of_all[:, self.scored] - mass[:, None]
        body = self.student.roberta(batch["input_ids"], attention_mask=mask, attention_capture=ours if layers else None)
        head = self.student.lm_head
        hidden = body.last_hidden_state[batch["target_row"], batch["target_position"]]  # [T, H]
        logits = head.decoder(head.layer_norm(torch.nn.functional.gelu(head.dense(hidden))))
        q = logits[:, ~self.unscored.view(-1)].log_softmax(1)
        parts = {"kd": (mass.exp() * (p.exp() * (p - q)).sum(1)).mean()}
        if layers and self.whole_maps:
            theirs = maps[:, [teacher.layers.index(layer) for layer, _ in self.matched]]
            parts["attention"] = attention_cross_entropy(all_keys(theirs, length), ours.rows()).mean()
        elif layers:
            parts["attention"] = self.attention_distance(batch, ours.rows()).mean()
        weights = {"kd": recipe.kd_weight, "attention": recipe.attention_weight}  # numbers in the recipes above
        return {"loss": torch.stack([weights[n] * part for n, part in parts.items()]).sum()} | parts


def teacher_in_the_loop(
    teacher: Teacher, cache: Cache, student_layers: int, remembers: bool = True
) -> TeacherInTheLoop:
    layers = tuple(layer for layer, _ in match_layers(cache.recipe, student_layers))
    return TeacherInTheLoop(teacher, layers, cache.recipe.seq_len, remembers)


def train(
    arm: Arm, cache: Cache, online: Callable[[int], TeacherInTheLoop], student: str, steps: int, seed: int,
    folder: Path, watch: Callable[[DistillationTrainer], TrainerCallback] | None = None,
) -> tuple[XLMRobertaForMaskedLM, StudentVocabulary]:  # fmt: skip
    """The student of the last step, and its vocabulary. `online` gives the teacher for a student of so many layers,
    `watch` a callback of the trainer."""
    vocabulary = choose_vocabulary(arm.vocabulary, [cache])
    shape = choose_shape(student, cache.recipe, len(vocabulary))
    model = new_student(shape, [cache], vocabulary, arm.objective.dropout, seed, arm.init)
    config = StudentConfig(folder, student=student, init=arm.init, objective=arm.objective, steps=steps, seed=seed)
    distiller = (
        OnlineDistiller(model, cache.recipe, arm.objective, vocabulary, online(shape.layers), arm.whole_maps)
        if arm.online
        else Distiller(model, cache.recipe, arm.objective, vocabulary)
    )
    arguments = training_arguments(config, shape)
    arguments.eval_strategy = IntervalStrategy.NO
    arguments.output_dir = str(folder)
    trainer = DistillationTrainer(
        distiller,
        arguments,
        CacheRows(
            shards_of([cache], "train"), arrays_to_read(cache.recipe, distiller.matches_attention, vocabulary.trimmed)
        ),
        validation_rows(shards_of([cache], "validation")),
        collator=student_collator(cache.recipe, vocabulary),
    )
    trainer.remove_callback(PrinterCallback)
    if watch is not None:
        trainer.add_callback(watch(trainer))
    trainer.train()
    return model.eval(), vocabulary
