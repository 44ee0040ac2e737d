"""Moments of a teacher's activations over some rows: what the projection of its layers to a smaller width rests on."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cache_tools.anatomy import Anatomy
from cache_tools.teacher.forward import HostBatch
from cache_tools.teacher.model import Teacher


@dataclass(frozen=True)
class Moments:
    """Mean [H] and second moment [H, H] of vectors, float64 on the CPU; the second moment [H] if only its diagonal is
    kept."""

    mean: Tensor
    second: Tensor

    @property
    def covariance(self) -> Tensor:
        squared = torch.outer(self.mean, self.mean) if self.second.dim() == 2 else self.mean.square()
        return self.second - squared


@dataclass(frozen=True)
class LayerMoments:
    """Moments in one layer: of the normalised inputs of its two norms, before scale and bias, of the attention output
    of all heads, and of the feed-forward's activations (variances only). The first layer of ModernBERT has no norm
    before its attention: there `attention_norm` is of the attention's input."""

    attention_norm: Moments
    ffn_norm: Moments
    context: Moments
    neurons: Moments


@dataclass(frozen=True)
class Activations:
    """Moments at all valid positions, of the embedding norm and each layer, and at the targets.

    `hidden` and `features` are the inputs of the head and of its last layer; `cross` [H, H] is the second moment of
    features by hidden. Before a head that follows a final norm, hidden is what that norm gives before scale and bias.
    `targets` is their number.
    """

    embedding_norm: Moments
    layers: tuple[LayerMoments, ...]
    hidden: Moments
    features: Moments
    cross: Tensor
    targets: int

    @property
    def cross_covariance(self) -> Tensor:
        return self.cross - torch.outer(self.features.mean, self.hidden.mean)


class _Sum:
    """A running mean and second moment of vectors: those of a batch in float32 on the device, their sums in float64."""

    def __init__(self, diagonal: bool = False) -> None:
        self.diagonal, self.count = diagonal, 0
        self.total: Any = 0.0
        self.products: Any = 0.0

    def add(self, vectors: Tensor, others: Tensor | None = None) -> None:
        """Add vectors [N, H]; with `others` [N, H'] the products are theirs with the vectors, [H, H']."""
        self.count += len(vectors)
        self.total = self.total + vectors.sum(0).double()
        products = vectors.square().sum(0) if self.diagonal else vectors.T @ (vectors if others is None else others)
        self.products = self.products + products.double()

    def moments(self) -> Moments:
        return Moments((self.total / self.count).cpu(), (self.products / self.count).cpu())


@torch.inference_mode()
def observe(teacher: Teacher, anatomy: Anatomy, batches: Iterable[HostBatch]) -> Activations:
    """Run the teacher, as it is, over some batches, and return the moments of its activations."""
    model, device = teacher.model, teacher.head.weight.device
    embedding_norm, hidden_sum, feature_sum, cross = _Sum(), _Sum(), _Sum(), _Sum()
    layers = [(_Sum(), _Sum(), _Sum(), _Sum(diagonal=True)) for _ in range(model.config.num_hidden_layers)]
    final_norm = None if anatomy.final_norm is None else anatomy.embeddings(model, anatomy.final_norm)
    last: list[Tensor] = []
    for batch in batches:
        input_ids, length, row, position = (
            t.to(device) for t in (batch.input_ids, batch.length, batch.row, batch.position)
        )
        mask = torch.arange(input_ids.shape[1], device=device) < length[:, None]  # [B, L]
        with ExitStack() as hooks:
            norm = anatomy.embeddings(model, anatomy.embedding_norm)
            hooks.enter_context(_inputs(norm, _adder(embedding_norm, mask, norm.eps)))
            for index, sums in enumerate(layers):
                for part, sum_ in zip(anatomy.sites, sums, strict=True):
                    module = anatomy.layer(model, index, part)
                    hooks.enter_context(_inputs(module, _adder(sum_, mask, getattr(module, "eps", None))))
            if final_norm is not None:
                hooks.enter_context(_inputs(final_norm, last.append))
            hidden = teacher.hidden_states(input_ids, mask, None)[row, position]  # [T, H]
        features = teacher.transform(hidden)  # [T, H]
        if final_norm is not None:
            hidden = _normalised(last.pop()[row, position], final_norm.eps)
        hidden_sum.add(hidden)
        feature_sum.add(features)
        cross.add(features, hidden)
    return Activations(
        embedding_norm.moments(),
        tuple(LayerMoments(*(sum_.moments() for sum_ in sums)) for sums in layers),
        hidden_sum.moments(),
        feature_sum.moments(),
        cross.moments().second,
        hidden_sum.count,
    )


def _adder(sum_: _Sum, mask: Tensor, eps: float | None) -> Callable[[Tensor], None]:
    """Return a function that adds the inputs [B, L, H] of a module at valid positions, normalised if it is a norm with
    `eps`."""

    def add(inputs: Tensor) -> None:
        vectors = inputs[mask]  # [N, H]
        sum_.add(vectors if eps is None else _normalised(vectors, eps))

    return add


def _normalised(vectors: Tensor, eps: float) -> Tensor:
    return nn.functional.layer_norm(vectors, vectors.shape[-1:], eps=eps)


@contextmanager
def _inputs(module: nn.Module, see: Callable[[Tensor], None]) -> Iterator[None]:
    """Call `see` with the module's input in every forward pass within the block."""
    handle = module.register_forward_pre_hook(lambda _, inputs: see(inputs[0]))
    try:
        yield
    finally:
        handle.remove()
