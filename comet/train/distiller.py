"""A student and its objective: one module whose forward pass is the loss of a batch."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cache_tools.attention import AttentionCapture, enable_capture
from cache_tools.errors import CometError
from cache_tools.store.recipe import Recipe
from comet.student.family import head_features, hidden_states, output_layer, word_embeddings
from comet.student.head import lookup, slice_logits, slices, sparse_head
from comet.student.vocabulary import StudentVocabulary, full_vocabulary
from comet.train.losses import ATTENTION_LOSSES, hard_cross_entropy
from comet.train.objective import LayerMap, Objective, at, is_used, temperatures_of
from comet.train.signals import AttentionTargets, Batch, StudentLogits, first_kept, logit_loss, teacher_targets

MOST_BLOCKS = 64  # along one side of the maps that the attention loss projects


@dataclass(frozen=True)
class Evaluation:
    """A student on a batch at temperature 1, beside its teacher; all [T] but `features` [T, H] and `attention`.

    `best` and `teacher_best` are the most probable tokens, `confidence` and `teacher_confidence` their probabilities;
    `kl` is NaN if the cache holds nothing at temperature 1. `attention` [B, layers, S, L] are the student's rows of
    attention in the matched layers, at the queries of the batch; empty if it has none.
    """

    kl: Tensor
    cross_entropy: Tensor
    best: Tensor
    teacher_best: Tensor
    confidence: Tensor
    teacher_confidence: Tensor
    features: Tensor
    attention: Tensor


class Distiller(nn.Module):
    """A student, its objective, and the learned projection of the attention loss if the objective has one.

    `forward` takes a batch of `collate`, in the student's ids, and the progress of the training, 0 to 1. It returns
    scalars: the weighted `loss` and its parts, without their weights. They are means over the batch's targets and rows,
    or sums divided by `targets` and `rows` if the batch is part of a larger one. With `bf16` the body, but never the
    head, trains under torch's autocast to bfloat16.
    Raises CometError on creation if the cache lacks a temperature, layer or signal of the objective.
    """

    cached_index: Tensor
    unscored: Tensor

    def __init__(
        self,
        student: PreTrainedModel,
        cache: Recipe,
        objective: Objective,
        vocabulary: StudentVocabulary | None = None,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        if absent := [t for t in temperatures_of(objective.temperature) if t not in cache.temperatures]:
            stored = ",".join(f"{t:g}" for t in cache.temperatures)
            raise CometError(
                f"temperature {absent[0]:g}: the cache holds logits for {stored} only; choose one of these, or build a "
                f"cache with --temperatures {stored},{absent[0]:g}",
                exit_code=2,
            )
        self.student, self.cache, self.objective, self.bf16 = student, cache, objective, bf16
        self.targets, self.logit_loss = teacher_targets(cache), logit_loss(objective.logit_loss, cache)
        self.attention_targets = AttentionTargets(cache)
        self.attention_loss = ATTENTION_LOSSES[objective.attention_loss]
        self.matches_attention = is_used(objective.attention_weight) and bool(cache.attention_layers)
        layers = student.config.num_hidden_layers
        if not self.matches_attention:
            self.matched: LayerMap = ()
        elif objective.layer_map is None:
            self.matched = match_layers(cache, layers)
        else:
            self.matched = _explicit_layers(objective.layer_map, cache, layers)
        if not (self.matches_attention or is_used(objective.kd_weight) or is_used(objective.hard_weight)):
            wanted = is_used(objective.attention_weight)
            why = "the cache holds no attention" if wanted else "so is attention_weight"
            raise CometError(
                f"objective {objective.name}: nothing to learn from: kd_weight and hard_weight are 0, and {why}",
                exit_code=2,
            )
        index = [cache.attention_layers.index(teacher) for teacher, _ in self.matched]
        # not a list, whose copy to a GPU each step would wait for
        self.register_buffer("cached_index", torch.tensor(index, dtype=torch.int64), persistent=False)
        self.projection: nn.Parameter | None = None
        if self.matches_attention and self.attention_loss.projects:
            self.projection = nn.Parameter(torch.eye(min(cache.attention_slots, MOST_BLOCKS) ** 2))
        vocabulary = vocabulary or full_vocabulary(cache)
        self.register_buffer("unscored", vocabulary.unscored, persistent=False)
        enable_capture(student)

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Compute layers again in the backward pass, for `--set activation_checkpointing=True`."""
        self.student.activation_checkpointing_enable(**options)

    def forward(
        self, progress: float = 0.0, targets: float | None = None, rows: float | None = None, **batch: Tensor
    ) -> dict[str, Tensor]:
        objective, temperature = self.objective, at(self.objective.temperature, progress)
        weights = {"kd": at(objective.kd_weight, progress)}
        weights |= {"hard": at(objective.hard_weight, progress)} if is_used(objective.hard_weight) else {}
        weights |= {"attention": at(objective.attention_weight, progress)} if self.matches_attention else {}
        if not len(batch["length"]):  # DDP still expects a gradient of every parameter
            nothing = torch.stack([0.0 * parameter.sum() for parameter in self.parameters()]).sum()
            return {"loss": nothing} | {name: nothing.detach() for name in weights}
        targets = max(len(batch["target_id"]), 1) if targets is None else targets
        rows = len(batch["length"]) if rows is None else rows
        grad_buffer: list[Tensor] = []
        features, attention = self.features(batch, grad_buffer)
        student = self.logits(features, batch, temperature, grad_buffer)
        parts = {"kd": temperature**2 * self.logit_loss(batch, student, temperature).sum() / targets}
        if "hard" in weights:
            parts["hard"] = hard_cross_entropy(student.label, student.kept, student.rest_at_one).sum() / targets
        if "attention" in weights:
            parts["attention"] = self.attention_distance(batch, attention).sum() / rows
        loss = torch.stack([weight * parts[name] for name, weight in weights.items()]).sum()
        return {"loss": loss} | {name: part.detach() for name, part in parts.items()}

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Evaluation:
        """Evaluate the student on every target of a batch, in evaluation mode; the mode is restored."""
        was_training = self.training
        self.eval()
        features, attention = self.features(batch)
        student = self.logits(features, batch, 1.0)
        best, best_logit = self.best_token(features, self.corpus(batch))
        kept_id = self.targets.kept_id(batch, 1.0)
        first = first_kept(kept_id)  # [T, 1]
        evaluation = Evaluation(
            kl=self.targets.losses["kl"](self.targets, batch, student, 1.0),
            cross_entropy=hard_cross_entropy(student.label, student.kept, student.rest),
            best=best,
            teacher_best=kept_id.gather(1, first)[:, 0],
            confidence=(-hard_cross_entropy(best_logit, student.kept, student.rest)).exp(),
            teacher_confidence=self.targets.teacher_logprob(batch).gather(1, first)[:, 0].exp(),
            features=features,
            attention=attention,
        )
        self.train(was_training)
        return evaluation

    def features(self, batch: Batch, grad_buffer: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return head features at the targets [T, H], and rows of attention [B, layers, S, L] in the matched layers, at
        the queries of the batch if it has any. `grad_buffer` as in `comet.student.head.lookup`."""
        input_ids, length = batch["input_ids"], batch["length"]
        seq_len = input_ids.shape[1]
        mask = torch.arange(seq_len, device=length.device) < length[:, None]  # [B, L]
        layers = tuple(layer for _, layer in self.matched)
        capture = None
        if layers and "attention_query" in batch:
            capture = AttentionCapture(layers, batch["attention_query"][:, self.cached_index])
        grad_buffer = [] if grad_buffer is None else grad_buffer
        words = lookup(word_embeddings(self.student), input_ids, grad_buffer)  # [B, L, H]
        with torch.autocast(input_ids.device.type, torch.bfloat16, enabled=self.bf16 and self.training):
            hidden = hidden_states(self.student, words, mask, capture)  # [B, L, H]
        hidden = hidden[batch["target_row"], batch["target_position"]].float()  # [T, H]
        features = head_features(self.student, hidden)
        return features, capture.rows() if capture else hidden.new_zeros(0)

    def logits(
        self, features: Tensor, batch: Batch, temperature: float, grad_buffer: list[Tensor] | None = None
    ) -> StudentLogits:
        weight, bias = self.output_layer()
        temperatures = (temperature,) if temperature == 1.0 else (temperature, 1.0)
        kept_id = self.targets.kept_id(batch, temperature)
        kept, label, rest = sparse_head(
            features, weight, bias, kept_id, batch["target_id"], temperatures, grad_buffer, self.corpus(batch)
        )
        return StudentLogits(kept, label, rest[:, 0], rest[:, -1])

    def output_layer(self) -> tuple[Tensor, Tensor]:
        """Return weight [V, H] and bias [C, V] of the last layer; a bias of −∞ excludes tokens from a corpus."""
        decoder = output_layer(self.student)
        return decoder.weight, decoder.bias.masked_fill(self.unscored, -torch.inf)

    def corpus(self, batch: Batch) -> Tensor | None:
        """Return the corpus [T] of each target, None if there is one only."""
        return batch["target_corpus"] if len(self.unscored) > 1 else None

    @torch.no_grad()
    def best_token(self, features: Tensor, corpus: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the student's most probable token [T], of equal ones the lowest id, and its logit [T]."""
        weight, bias = self.output_layer()
        best = features.new_full((len(features),), -torch.inf)
        token = torch.zeros_like(best, dtype=torch.int64)
        for start, stop in slices(len(weight)):
            value, index = slice_logits(features, weight, bias, start, stop, corpus).max(0)  # [T]
            token = torch.where(value > best, index + start, token)
            best = torch.maximum(value, best)
        return token, best

    def attention_distance(self, batch: Batch, student: Tensor) -> Tensor:
        """Return the distance [B] of the student's rows of attention [B, layers, S, L] to the teacher's."""
        teacher = self.attention_targets.sampled(batch, self.cached_index)
        projection = () if self.projection is None else (self.projection,)
        return self.attention_loss.distance(teacher, student, *projection)


def match_layers(cache: Recipe, student_layers: int) -> LayerMap:
    """Match layers by relative depth, ascending: last matches last.

    Each cached teacher layer belongs to the student layer nearest to its depth. Of several that belong to one, the
    nearest is matched, and the deeper one of two equally near.
    """
    depth_of = {layer: (layer + 1) * student_layers / cache.teacher_layers for layer in cache.attention_layers}
    pairs = []
    for layer in range(student_layers):
        near = [t for t, depth in depth_of.items() if max(round(depth), 1) == layer + 1]
        if near:
            pairs.append((min(near, key=lambda t: (abs(depth_of[t] - layer - 1), -t)), layer))
    return tuple(pairs)


def _explicit_layers(wanted: LayerMap, cache: Recipe, student_layers: int) -> LayerMap:
    """Return an objective's layer map with layers from 0, ascending. Raises CometError for absent or repeated ones."""
    pairs = []
    for teacher, student in wanted:
        pair = teacher % cache.teacher_layers, student % student_layers
        if not -cache.teacher_layers <= teacher < cache.teacher_layers or pair[0] not in cache.attention_layers:
            stored = ", ".join(map(str, cache.attention_layers)) or "none"
            raise CometError(f"layer_map: teacher layer {teacher} is not in the cache, which has {stored}", exit_code=2)
        if not -student_layers <= student < student_layers:
            raise CometError(f"layer_map: student layer {student}: the student has {student_layers}", exit_code=2)
        pairs.append(pair)
    if len({student for _, student in pairs}) < len(pairs):
        raise CometError("layer_map: a student layer is named twice; match it to one teacher layer only", exit_code=2)
    return tuple(sorted(pairs, key=lambda pair: pair[1]))
