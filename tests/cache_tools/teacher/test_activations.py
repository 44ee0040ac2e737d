"""Moments of a teacher's activations, against all of these collected and put together."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small_caches import random_shard, small_recipe
from helpers.tiny_teachers import bert
from numpy.typing import NDArray
from torch import Tensor, nn

from cache_tools.anatomy import Anatomy, anatomy_of
from cache_tools.teacher.forward import HostBatch, host_batch
from cache_tools.teacher.model import Teacher, load_teacher
from cache_tools.teacher.start.activations import Activations, Moments, observe

RECIPE = small_recipe()
SHARDS = [random_shard(RECIPE, "train", shard) for shard in range(3)]


@pytest.fixture(scope="module", params=["xlm-r", "bert"])
def teacher(
    request: pytest.FixtureRequest, sample_teacher: Path, sample_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Teacher:
    if request.param == "xlm-r":
        return load_teacher(str(sample_teacher))
    folder = tmp_path_factory.mktemp("bert")
    bert(folder, sample_text)
    return load_teacher(str(folder))


@pytest.fixture(scope="module")
def anatomy(teacher: Teacher) -> Anatomy:
    found = anatomy_of(type(teacher.model).__name__)
    assert found is not None
    return found


def batches(shards: list[dict[str, NDArray]]) -> list[HostBatch]:
    return [host_batch(RECIPE, arrays) for arrays in shards]


@pytest.fixture(scope="module")
def observed(teacher: Teacher, anatomy: Anatomy) -> Activations:
    return observe(teacher, anatomy, batches(SHARDS))


@pytest.fixture(scope="module")
def collected(teacher: Teacher, anatomy: Anatomy) -> dict[str, Tensor]:
    """All vectors [N, …] in float64 by what they are, row by row without padding, from transformers' own outputs."""
    found: dict[str, list[Tensor]] = defaultdict(list)
    model, body, config = teacher.model, teacher.model.base_model, teacher.model.config
    assert isinstance(body, nn.Module)
    norms = {
        "embedding": body.get_submodule("embeddings.LayerNorm"),
        **{
            f"{index} {name}": body.get_submodule(f"encoder.layer.{index}.{path}")
            for index in range(config.num_hidden_layers)
            for name, path in (
                ("attention", "attention.output.LayerNorm"),
                ("ffn", "output.LayerNorm"),
                ("context", "attention.output.dense"),
                ("neurons", "output.dense"),
            )
        },
        "hidden": model.get_submodule(anatomy.head_dense),
        "features": model.get_submodule(anatomy.decoder),
    }

    def take(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        vectors = inputs[0][0].double()
        if isinstance(module, nn.LayerNorm):  # by definition, in double precision
            centred = vectors - vectors.mean(-1, keepdim=True)
            vectors = centred / (centred.square().mean(-1, keepdim=True) + module.eps).sqrt()
        found[name].append(vectors)

    for arrays in SHARDS:
        for ids, length, position in zip(arrays["input_ids"], arrays["length"], arrays["target_position"], strict=True):
            handles = [
                module.register_forward_pre_hook(lambda m, inputs, name=name: take(name, m, inputs))
                for name, module in norms.items()
            ]
            row = torch.from_numpy(ids[:length].astype(np.int64))[None]
            with torch.no_grad():
                model(row)
            for handle in handles:
                handle.remove()
            targets = torch.from_numpy(position[position != 65535].astype(np.int64))
            for name in ("hidden", "features"):
                found[name][-1] = found[name][-1][targets]
    return {name: torch.cat(parts) for name, parts in found.items()}


def assert_moments(moments: Moments, vectors: Tensor) -> None:
    diagonal = moments.second.dim() == 1
    second = vectors.square().mean(0) if diagonal else vectors.T @ vectors / len(vectors)
    covariance = vectors.var(0, correction=0) if diagonal else vectors.T.cov(correction=0)
    close = {"rtol": 1e-4, "atol": 1e-4 * float(second.abs().max())}
    assert moments.mean.dtype == moments.second.dtype == torch.float64
    torch.testing.assert_close(moments.mean, vectors.mean(0), **close)
    torch.testing.assert_close(moments.second, second, **close)
    torch.testing.assert_close(moments.covariance, covariance, **close)


def test_moments_are_those_of_all_valid_positions(observed: Activations, collected: dict[str, Tensor]) -> None:
    valid = sum(int(arrays["length"].sum()) for arrays in SHARDS)
    assert len(collected["embedding"]) == len(collected["0 neurons"]) == valid
    assert_moments(observed.embedding_norm, collected["embedding"])
    for index, layer in enumerate(observed.layers):
        assert_moments(layer.attention_norm, collected[f"{index} attention"])
        assert_moments(layer.ffn_norm, collected[f"{index} ffn"])
        assert_moments(layer.context, collected[f"{index} context"])
        assert_moments(layer.neurons, collected[f"{index} neurons"])
        assert layer.neurons.second.dim() == 1


def test_moments_of_the_head_are_those_of_the_targets(observed: Activations, collected: dict[str, Tensor]) -> None:
    hidden, features = collected["hidden"], collected["features"]
    assert observed.targets == len(hidden) == sum(int((a["target_position"] != 65535).sum()) for a in SHARDS)
    assert_moments(observed.hidden, hidden)
    assert_moments(observed.features, features)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(observed.cross, features.T @ hidden / len(hidden), **close)
    centred = (features - features.mean(0)).T @ (hidden - hidden.mean(0)) / len(hidden)
    torch.testing.assert_close(observed.cross_covariance, centred, **close)


def test_tokens_in_the_padding_change_nothing(teacher: Teacher, anatomy: Anatomy, observed: Activations) -> None:
    changed = [dict(arrays) for arrays in SHARDS]
    for arrays in changed:
        padding = np.arange(RECIPE.seq_len) >= arrays["length"][:, None]
        assert padding.any()
        arrays["input_ids"] = np.where(padding, 7, arrays["input_ids"]).astype(np.int32)
    again = observe(teacher, anatomy, batches(changed))
    for one, other in ((observed.embedding_norm, again.embedding_norm), (observed.hidden, again.hidden)):
        torch.testing.assert_close(one.second, other.second)
    for before, after in zip(observed.layers, again.layers, strict=True):
        torch.testing.assert_close(before.context.second, after.context.second)


def test_nothing_stays_on_the_teacher(teacher: Teacher, observed: Activations) -> None:
    assert not any(module._forward_pre_hooks for module in teacher.model.modules())
