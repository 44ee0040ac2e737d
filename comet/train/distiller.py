"""The student together with what it is compared to: one module whose forward pass is the loss of a batch."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import XLMRobertaForMaskedLM

from cache_tools.attention import AttentionCapture, enable_capture
from cache_tools.errors import CometError
from cache_tools.store.recipe import Recipe
from comet.student.head import lookup, slice_logits, slices, sparse_head
from comet.student.vocabulary import StudentVocabulary, full_vocabulary
from comet.train.losses import (
    attention_kl,
    attention_mse,
    attention_projection,
    bucketed_kl,
    hard_cross_entropy,
    residual_kl,
    sampled_kl,
)
from comet.train.objective import Objective, at, is_used, temperatures_of


class Distiller(nn.Module):
    """A student, its objective, and the learned projection of the attention loss where the objective has one.

    `forward` takes a batch of `collate`, in the student's ids, and how much of the training is done, 0 to 1.
    It returns scalars: the weighted `loss` and its parts, each without its weight, means over the batch's targets and
    rows, or sums divided by `targets` and `rows` where the batch is a part of a larger one. With `bf16` the body
    trains in bfloat16 where torch's autocast says so; the head never does.
    Raises CometError on creation when the cache does not hold what the objective needs.
    """

    unscored: Tensor

    def __init__(
        self,
        student: XLMRobertaForMaskedLM,
        cache: Recipe,
        training: Objective,
        vocabulary: StudentVocabulary | None = None,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        absent = [t for t in temperatures_of(training.temperature) if t not in cache.temperatures]
        if absent:
            stored = ",".join(f"{t:g}" for t in cache.temperatures)
            raise CometError(
                f"temperature {absent[0]:g}: the cache holds logits for {stored} only; choose one of these, or build a "
                f"cache with --temperatures {stored},{absent[0]:g}",
                exit_code=2,
            )
        if training.logit_loss == "residual" and cache.keep != "topk":
            raise CometError(
                f"logit_loss residual: needs a cache of the best tokens (--keep topk), this one holds a {cache.keep} "
                "sample; use logit_loss kl",
                exit_code=2,
            )
        self.student = student
        self.bf16 = bf16
        self.cache = cache
        self.objective = training
        self.matches_attention = is_used(training.attention_weight) and bool(cache.attention_layers)
        layers = student.config.num_hidden_layers
        if training.layer_map is None:
            matched = match_layers(cache, layers)
        else:
            matched = explicit_layers(training.layer_map, cache, layers)
        self.matched = matched if self.matches_attention else ()
        self.cached_index = [cache.attention_layers.index(teacher) for teacher, _ in self.matched]
        self.projection: nn.Parameter | None = None
        if self.matches_attention and training.attention_loss == "projection":
            self.projection = nn.Parameter(torch.eye(cache.attention_size**2))
        vocabulary = vocabulary or full_vocabulary(cache)
        self.register_buffer("unscored", vocabulary.unscored, persistent=False)
        enable_capture(student)

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """What `--set activation_checkpointing=True` asks of a model: layers computed again when going back."""
        self.student.activation_checkpointing_enable(**options)

    def forward(
        self, progress: float = 0.0, targets: float | None = None, rows: float | None = None, **batch: Tensor
    ) -> dict[str, Tensor]:
        objective, temperature = self.objective, at(self.objective.temperature, progress)
        weights = {"kd": at(objective.kd_weight, progress)}
        weights |= {"hard": at(objective.hard_weight, progress)} if is_used(objective.hard_weight) else {}
        weights |= {"attention": at(objective.attention_weight, progress)} if self.matches_attention else {}
        if not len(batch["length"]):  # DDP still waits for a gradient of every parameter
            nothing = torch.stack([0.0 * parameter.sum() for parameter in self.parameters()]).sum()
            return {"loss": nothing} | {name: nothing.detach() for name in weights}
        targets = max(len(batch["target_id"]), 1) if targets is None else targets
        rows = len(batch["length"]) if rows is None else rows
        grad_buffer: list[Tensor] = []
        features, maps = self.features(batch, grad_buffer)
        kept, truth, rest, rest_at_one = self.head(features, batch, temperature, grad_buffer)
        parts = {"kd": temperature**2 * self.logit_loss(batch, kept, truth, rest, temperature).sum() / targets}
        if "hard" in weights:
            parts["hard"] = hard_cross_entropy(truth, kept, rest_at_one).sum() / targets
        if "attention" in weights:
            parts["attention"] = self.attention_loss(batch, maps).sum() * self.cache.attention_every / rows
        loss = torch.stack([weight * parts[name] for name, weight in weights.items()]).sum()
        return {"loss": loss} | {name: part.detach() for name, part in parts.items()}

    def features(self, batch: dict[str, Tensor], grad_buffer: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Head features at the targets [T, H], and pooled maps of the matched layers [B', layers, m, m], of the rows of
        which the cache has maps.

        `grad_buffer` as in `comet.student.head.lookup`.
        """
        input_ids, length = batch["input_ids"], batch["length"]
        seq_len = input_ids.shape[1]
        mask = torch.arange(seq_len, device=length.device) < length[:, None]  # [B, L]
        layers = tuple(layer for _, layer in self.matched)
        capture = None
        if layers and "map_row" in batch:
            of_all = len(batch["map_row"]) == len(length)  # then one matrix serves the attention and the map
            size, map_row = self.cache.attention_size, None if of_all else batch["map_row"]
            capture = AttentionCapture(layers, length, seq_len, size, map_row)
        embeddings = self.student.roberta.embeddings
        words = lookup(
            embeddings.word_embeddings.weight, input_ids, [] if grad_buffer is None else grad_buffer
        )  # [B, L, H]
        positions = embeddings.create_position_ids_from_input_ids(input_ids, embeddings.padding_idx)
        with torch.autocast(input_ids.device.type, torch.bfloat16, enabled=self.bf16 and self.training):
            body = self.student.roberta(
                inputs_embeds=words,
                position_ids=positions,
                attention_mask=mask,
                attention_capture=capture,
                use_cache=False,
            )
        hidden = body.last_hidden_state[batch["target_row"], batch["target_position"]].float()  # [T, H]
        head = self.student.lm_head
        features = head.layer_norm(gelu(head.dense(hidden)))
        return features, capture.maps() if capture else hidden.new_zeros(0)

    def head(
        self, features: Tensor, batch: dict[str, Tensor], temperature: float, grad_buffer: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(kept [T, k], truth [T], rest [T] at the temperature, rest [T] at 1)."""
        weight, bias = self.output_layer()
        temperatures = (temperature,) if temperature == 1.0 else (temperature, 1.0)
        kept, truth, rest = sparse_head(
            features, weight, bias, self.kept_id(batch, temperature), batch["target_id"], temperatures, grad_buffer
        )
        return kept, truth, rest[:, 0], rest[:, -1]

    def output_layer(self) -> tuple[Tensor, Tensor]:
        """Weight [V, H] and bias [V] of the last layer; a bias of −∞ takes tokens out that are never asked for."""
        decoder = self.student.lm_head.decoder
        return decoder.weight, decoder.bias.masked_fill(self.unscored, -torch.inf)

    @torch.no_grad()
    def best_token(self, features: Tensor) -> Tensor:
        """[T] the student's most probable token, ties to the lower id."""
        weight, bias = self.output_layer()
        best = features.new_full((len(features),), -torch.inf)
        token = torch.zeros_like(best, dtype=torch.int64)
        for start, stop in slices(len(weight)):
            value, index = slice_logits(features, weight, bias, start, stop).max(0)  # [T]
            token = torch.where(value > best, index + start, token)
            best = torch.maximum(value, best)
        return token

    def kept_id(self, batch: dict[str, Tensor], temperature: float) -> Tensor:
        """[T, k] the tokens that the cache knows of, the most probable first; of a sample those for this temperature.

        Raises ValueError for a temperature that a sample is not stored for.
        """
        if self.cache.keep == "topk":
            return batch["topk_id"]
        return batch["sample_id"][:, self.cache.temperatures.index(temperature)]

    def logit_loss(
        self, batch: dict[str, Tensor], kept: Tensor, truth: Tensor, rest: Tensor, temperature: float
    ) -> Tensor:
        """[T] the objective's distance to the teacher at a stored temperature."""
        if self.objective.logit_loss == "residual":
            tail = batch["tail_logmass"][:, self.cache.temperatures.index(temperature)]
            is_truth = batch["topk_id"] == batch["target_id"][:, None]
            return residual_kl(batch["topk_logprob"], tail, is_truth, kept, rest, truth, temperature)
        return self.kl(batch, kept, rest, temperature)

    def kl(self, batch: dict[str, Tensor], kept: Tensor, rest: Tensor, temperature: float) -> Tensor:
        """[T] KL to the teacher, bucketed or from a threshold sample; NaN at a temperature that is not stored."""
        if temperature not in self.cache.temperatures:
            return torch.full_like(rest, torch.nan)
        index = self.cache.temperatures.index(temperature)
        if self.cache.keep == "topk":
            return bucketed_kl(batch["topk_logprob"], batch["tail_logmass"][:, index], kept, rest, temperature)
        logweight, entropy = batch["sample_logweight"][:, index], batch["entropy"][:, index]
        return sampled_kl(logweight, entropy, kept, rest, temperature)

    def attention_loss(self, batch: dict[str, Tensor], maps: Tensor) -> Tensor:
        """[B'] distance of the student's pooled maps to the teacher's."""
        teacher, length = batch["attention"][:, self.cached_index], batch["length"][batch["map_row"]]
        if self.projection is not None:
            return attention_projection(teacher, maps, self.projection)
        loss = {"kl": attention_kl, "mse": attention_mse}[self.objective.attention_loss]
        return loss(teacher, maps, length)


def first_kept(kept_id: Tensor) -> Tensor:
    """[T, 1] the first slot of [T, k] that is not left out (−1): where the most probable token that is kept stands."""
    return (kept_id >= 0).byte().argmax(1, keepdim=True)


def match_layers(cache: Recipe, student_layers: int) -> tuple[tuple[int, int], ...]:
    """(teacher layer, student layer) pairs, ascending, by relative depth: last matches last.

    Each cached teacher layer belongs to the student layer nearest to its depth; where several belong to one, the
    nearest of them is matched, the deeper one of two equally near.
    """
    depth_of = {layer: (layer + 1) * student_layers / cache.teacher_layers for layer in cache.attention_layers}
    pairs = []
    for layer in range(student_layers):
        near = [t for t, depth in depth_of.items() if max(round(depth), 1) == layer + 1]
        if near:
            pairs.append((min(near, key=lambda t: (abs(depth_of[t] - layer - 1), -t)), layer))
    return tuple(pairs)


def explicit_layers(
    wanted: tuple[tuple[int, int], ...], cache: Recipe, student_layers: int
) -> tuple[tuple[int, int], ...]:
    """The pairs of an objective's layer map, from 0 and ascending. Raises CometError for layers that are not there."""
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
        raise CometError("layer_map: a student layer can match one teacher layer only, and is named twice", exit_code=2)
    return tuple(sorted(pairs, key=lambda pair: pair[1]))
