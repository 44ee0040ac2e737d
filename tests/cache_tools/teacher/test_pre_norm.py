"""The start of a ModernBERT: its arrays against the teacher's weights, and how a cache with one is checked."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.settings import build_settings
from helpers.small_caches import change_json
from helpers.tiny_teachers import modernbert
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM

from cache_tools import Cache, build_cache, open_cache
from cache_tools.errors import CometError
from cache_tools.settings import RerunSettings
from cache_tools.store.layout import encode_chunk
from cache_tools.store.ledger import SEAL, file_record
from cache_tools.store.recipe import Recipe, parse_recipe
from cache_tools.store.start import read_start, start_arrays
from cache_tools.verify.verify import verify

HEADS, SIZE, NEURONS, HIDDEN = 4, 8, 48, 32


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, sample_text: Path) -> Path:
    """Of layer 1, head 2 adds most, and head 0 nothing; of layer 2, neuron 7 adds most."""
    folder = tmp_path_factory.mktemp("modernbert")
    modernbert(folder, sample_text)
    model = AutoModelForMaskedLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[1].attn.Wo.weight[:, 2 * SIZE : 3 * SIZE] *= 9
        model.model.layers[1].attn.Wo.weight[:, :SIZE] = 0
        model.model.layers[2].mlp.Wo.weight[:, 7] *= 99
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(teacher: Path) -> Any:
    return AutoModelForMaskedLM.from_pretrained(teacher).eval()


@pytest.fixture(scope="module")
def of_width(
    teacher: Path, sample_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int | None], Cache]:
    """Complete caches that nobody changes, by the width of their start."""
    folder, built = tmp_path_factory.mktemp("caches"), dict[int | None, Cache]()

    def build(width: int | None) -> Cache:
        if width not in built:
            settings = build_settings(folder / f"{width}.zarr", teacher, sample_text, start_width=width)
            built[width] = build_cache(settings)
        return built[width]

    return build


def start_of(cache: Cache) -> dict[str, Tensor]:
    return {name: torch.from_numpy(read_start(cache, name)).float() for name in start_arrays(cache.recipe)}


def test_matrices_are_the_teacher_s_in_another_basis(of_width: Callable[[int | None], Cache], model: Any) -> None:
    start = start_of(of_width(None))
    assert set(start) == {
        "basis", "embedding", "head_bias", "attention", "ffn", "second_moment", "embedding_scale", "head", "head_mean",
        "head_order", "neuron_order", "norm_weight", "head_dense",
    }  # fmt: skip
    for number, layer in enumerate(model.model.layers):
        scale = layer.attn_norm.weight if number else torch.ones(HIDDEN)
        query, key, value = (layer.attn.Wqkv.weight * scale).unflatten(0, (3, HEADS, SIZE))
        output = (layer.attn.Wo.weight - layer.attn.Wo.weight.mean(0)).T.unflatten(0, (HEADS, SIZE))
        order = start["head_order"][number].long()
        found = (start["attention"][number] @ start["basis"].T).unflatten(1, (HEADS, SIZE))
        for matrix, expected in zip(found, (query, key, value, output), strict=True):
            torch.testing.assert_close(matrix, expected[order], atol=2e-3, rtol=0)
        up, gate = (layer.mlp.Wi.weight * layer.mlp_norm.weight).chunk(2)
        down = (layer.mlp.Wo.weight - layer.mlp.Wo.weight.mean(0)).T
        order = start["neuron_order"][number].long()
        found = start["ffn"][number] @ start["basis"].T
        for matrix, expected in zip(found, (up, gate, down), strict=True):
            torch.testing.assert_close(matrix, expected[order], atol=2e-2, rtol=0)


def test_what_adds_most_comes_first(of_width: Callable[[int | None], Cache]) -> None:
    start = start_of(of_width(16))
    assert (start["head_order"][1][0], start["head_order"][1][-1]) == (2, 0)
    assert start["neuron_order"][2][0] == 7
    assert start["neuron_order"].shape == (4, NEURONS // 2)


@torch.no_grad()
def inputs_in_training_rows(cache: Cache, model: Any, parts: list[nn.Module]) -> list[Tensor]:
    """The inputs [N, H] of these parts at the positions that the start comes from: at targets for the final norm."""
    tokens = [cache.read_tokens("train", shard)[0] for shard in range(cache.recipe.shards("train"))]
    ids, length, position = (
        torch.from_numpy(np.concatenate([t[name] for t in tokens]).astype(np.int64))
        for name in ("input_ids", "length", "target_position")
    )
    mask, used = torch.arange(ids.shape[1]) < length[:, None], position < ids.shape[1]
    seen: dict[int, Tensor] = {}

    def see(part: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        seen[id(part)] = (*inputs, *named.values())[0]

    hooks = [part.register_forward_pre_hook(see, with_kwargs=True) for part in parts]
    model(ids, attention_mask=mask)
    for hook in hooks:
        hook.remove()
    final = (torch.nonzero(used)[:, 0], position[used])
    return [seen[id(part)][final if part is model.model.final_norm else mask] for part in parts]


def test_orders_are_by_the_second_moment_of_what_is_added(of_width: Callable[[int | None], Cache], model: Any) -> None:
    """Not by its variance: a student has no bias that could take the mean of what it lacks."""
    start, layers = start_of(of_width(None)), list(model.model.layers)
    inputs = inputs_in_training_rows(of_width(None), model, [part for x in layers for part in (x.attn.Wo, x.mlp.Wo)])
    for number, layer in enumerate(layers):
        output, down = (part.weight - part.weight.mean(0) for part in (layer.attn.Wo, layer.mlp.Wo))
        context, neurons = inputs[2 * number : 2 * number + 2]
        heads = [
            (context[:, part] @ output[:, part].T).square().sum()
            for part in (slice(head * SIZE, head * SIZE + SIZE) for head in range(HEADS))
        ]
        added = neurons.square().sum(0) * down.square().sum(0)
        for name, sizes in (("head_order", torch.stack(heads)), ("neuron_order", added)):
            ordered = sizes[start[name][number].long()]
            assert (ordered.diff() <= 1e-5 * ordered[:-1]).all(), name


def test_second_moments_are_those_of_the_inputs_of_each_part(
    of_width: Callable[[int | None], Cache], model: Any
) -> None:
    cache, body = of_width(None), model.model
    parts = [body.embeddings.norm, body.layers[0].attn]
    parts += [part for layer in body.layers for part in (layer.attn_norm, layer.mlp_norm)]
    parts.append(body.final_norm)
    basis, found = start_of(cache)["basis"], start_of(cache)["second_moment"]
    for part, vectors, row in zip(parts, inputs_in_training_rows(cache, model, parts), found, strict=True):
        if isinstance(part, nn.LayerNorm):
            vectors = nn.functional.layer_norm(vectors, (HIDDEN,))
        torch.testing.assert_close((vectors @ basis).square().mean(0), row, atol=1e-3, rtol=2e-3)


def test_a_narrow_start_is_a_leading_block(of_width: Callable[[int | None], Cache]) -> None:
    wide, narrow = (start_of(of_width(width)) for width in (24, 16))
    for name, array in narrow.items():
        if name not in ("head",):
            leading = wide[name][tuple(slice(size) for size in array.shape)]
            torch.testing.assert_close(array, leading, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize(("width", "nearest"), [(12, 8), (40, 32)])
def test_a_width_holds_whole_heads(teacher: Path, sample_text: Path, tmp_path: Path, width: int, nearest: int) -> None:
    expected = (
        f"--start-width {width}: expected a multiple of the teacher's size of a head, 8, up to its width 32, "
        f"such as {nearest}$"
    )
    with pytest.raises(CometError, match=expected):
        build_cache(build_settings(tmp_path / "kin.zarr", teacher, sample_text, start_width=width))


def test_it_is_sound_and_its_teacher_s(of_width: Callable[[int | None], Cache], teacher: Path) -> None:
    for width in (None, 16):
        report = verify(of_width(width).root, deep=True, again=RerunSettings(str(teacher), rows=4, device="cpu"))
        assert not report.damage and not report.notes


def changed(cache: Cache, folder: Path, name: str, change: Callable[[NDArray], object]) -> Path:
    """A copy with another array of the start, under sound checksums."""
    root = Path(shutil.copytree(cache.root, folder / "kin.zarr"))
    array = read_start(cache, name).copy()
    change(array)
    (index,) = start_arrays(cache.recipe)[name].chunks()[-1:]
    spec = start_arrays(cache.recipe)[name]
    path, data = spec.chunk_path(*index), encode_chunk(spec, array[spec.region(index)])
    (root / path).write_bytes(data)
    change_json(root / SEAL, lambda seal: seal["files"].update({path: file_record(data).to_json()}), sign=True)
    return root


def a_quarter_more(array: NDArray) -> None:
    array *= 1.25


@pytest.mark.parametrize("name", ["attention", "ffn", "second_moment", "embedding_scale", "norm_weight", "head_dense"])
def test_another_array_is_not_the_teacher_s(
    of_width: Callable[[int | None], Cache], teacher: Path, tmp_path: Path, name: str
) -> None:
    root = changed(of_width(None), tmp_path, name, a_quarter_more)
    assert not verify(root, deep=True).damage
    report = verify(root, again=RerunSettings(str(teacher), rows=1, device="cpu"))
    assert any(f"start/{name}: " in str(found) for found in report.damage), report


def test_deep_finds_a_negative_second_moment(of_width: Callable[[int | None], Cache], tmp_path: Path) -> None:
    def negate(array: NDArray) -> None:
        array[-1, 3] = -1.0

    root = changed(of_width(16), tmp_path, "second_moment", negate)
    (damage,) = verify(root, deep=True).damage
    assert str(damage.message) == f"{root}: start/second_moment: a second moment is negative"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"start_rope": []}, "'start_rope': expected two numbers from 1 to 1e\\+09 if layers with rotary positions"),
        ({"start_rope": [1e4]}, "'start_rope': expected two numbers"),
        ({"start_rope": [1e4, 0.5]}, "'start_rope': expected two numbers"),
        ({"start_rope": [1e4, float("nan")]}, "'start_rope': expected two numbers"),
        ({"start_rope": [1e4, 10000]}, "'start_rope': expected two numbers"),
        ({"start_rope": "no"}, "'start_rope': expected two numbers"),
        ({"start_positions": 64}, "'start_positions': expected 0, since they are rotary, found '64'"),
        ({"start_local_layers": [1, 2, 9]}, "'start_local_layers': expected 0 to 4096 different numbers from 0 to 3"),
        ({"start_layers": [0, 1, 3]}, "'start_local_layers': expected numbers that are also in start_layers"),
        ({"start_local_layers": []}, "'start_window': expected a number above 0 if layers are local, else 0"),
        ({"start_window": 0}, "'start_window': expected a number above 0 if layers are local, else 0"),
        ({"start_window": -1}, "'start_window': expected a whole number from 0"),
        ({"start_width": 20}, "'start_width': expected a multiple of 8, found '20'"),
        ({"teacher_heads": 5}, "'teacher_heads': expected a divisor of 32, found '5'"),
        ({"teacher_heads": 64}, "'teacher_heads': expected a divisor of 32, found '64'"),
        ({"teacher_architecture": "BertForMaskedLM"}, "'start_rope': expected two numbers .* else none, found"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(
    of_width: Callable[[int | None], Cache], changes: dict[str, Any], expected: str
) -> None:
    value = json.loads(json.dumps(vars(of_width(16).recipe)))
    assert parse_recipe(value, "kin.zarr") == of_width(16).recipe
    with pytest.raises(CometError, match=expected):
        parse_recipe(value | changes, "kin.zarr")


def test_the_recipe_is_in_the_cache_as_it_was_made(of_width: Callable[[int | None], Cache]) -> None:
    recipe: Recipe = open_cache(of_width(16).root).recipe
    assert (recipe.start_layers, recipe.start_width, recipe.start_neurons) == ((0, 1, 2, 3), 16, 24)
    assert (recipe.start_local_layers, recipe.start_window, recipe.start_positions) == ((1, 2), 8, 0)
    assert recipe.start_rope == (160_000.0, 10_000.0) and recipe.start_step == 8
