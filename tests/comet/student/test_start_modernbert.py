"""Students that begin with the layers of a ModernBERT: whole heads, local and global layers, norms before both."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.settings import build_settings
from helpers.small_caches import small_recipe
from helpers.tiny_teachers import modernbert
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedModel

from cache_tools import Cache, build_cache, components
from cache_tools.anatomy import GLOBAL, LOCAL, anatomy_of
from cache_tools.attention import AttentionCapture, enable_capture
from cache_tools.errors import CometError
from comet import StudentConfig, distill
from comet.student.family import StudentShape, hidden_states, word_embeddings
from comet.student.model import new_student
from comet.student.pre_norm import body_weights
from comet.student.shape import choose_shape
from comet.student.vocabulary import full_vocabulary

ROPE = {
    GLOBAL: {"rope_type": "default", "rope_theta": 5000.0},
    LOCAL: {"rope_type": "default", "rope_theta": 300.0},
}
LONG = 40  # tokens, five times the window
WHOLE = StudentShape("whole", 4, 32, 4, 48)
NARROWER = [
    StudentShape("three heads", 4, 24, 3, 36),
    StudentShape("two heads", 4, 16, 2, 24),
    StudentShape("two layers", 2, 16, 2, 24),
    StudentShape("few neurons", 3, 24, 3, 5),
    StudentShape("one head", 1, 8, 1, 12),
    StudentShape("fewer layers", 2, 32, 4, 48),
]
Build = Callable[..., Cache]


@pytest.fixture(scope="module")
def built(sample_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A cache of a teacher with these fields of its config, after `change` of its weights, which lies beside it."""

    @functools.cache
    def build(change: Callable[[Any], None] | None = None, width: int | None = None, layers: str = "auto") -> Cache:
        folder = tmp_path_factory.mktemp("modernbert")
        (folder / "teacher").mkdir()
        modernbert(folder / "teacher", sample_text, rope_parameters=ROPE)
        if change is not None:
            model = AutoModelForMaskedLM.from_pretrained(folder / "teacher")
            with torch.no_grad():
                change(model)
            model.save_pretrained(folder / "teacher")
        return build_cache(
            build_settings(
                folder / "kin.zarr", folder / "teacher", sample_text, attention_layers="all", start_width=width,
                start_layers=layers,
            )
        )  # fmt: skip

    return build


def teacher_of(cache: Cache) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForMaskedLM.from_pretrained(cache.root.parent / "teacher").eval()
    return model


def student_of(cache: Cache, shape: StudentShape, init: str = "start") -> PreTrainedModel:
    return new_student(shape, [cache], full_vocabulary(cache.recipe), dropout=0.0, seed=0, init=init).eval()


def rows_of(cache: Cache) -> tuple[Tensor, Tensor]:
    """Ids [8, LONG] of tokens of the corpus, some masked, and the mask before their padding."""
    generator = torch.Generator().manual_seed(1)
    seen = torch.tensor(cache.vocabulary.id.astype(np.int64))
    ids = seen[torch.randint(len(seen), (8, LONG), generator=generator)]
    ids[:, 5::7] = cache.recipe.mask_id
    mask = torch.arange(LONG) < torch.tensor([LONG, LONG, 33, 30, 20, 12, 9, 5])[:, None]
    return ids.masked_fill(~mask, cache.recipe.pad_id), mask


@torch.no_grad()
def distance(cache: Cache, student: PreTrainedModel) -> float:
    """KL of the student from the teacher over the tokens of the corpus, in nats a position."""
    ids, mask = rows_of(cache)
    seen = torch.tensor(cache.vocabulary.id.astype(np.int64))
    teacher, found = (
        model(ids, attention_mask=mask).logits[mask][:, seen].log_softmax(1) for model in (teacher_of(cache), student)
    )
    return (teacher.exp() * (teacher - found)).sum(1).mean().item()


def test_a_student_of_all_layers_and_full_width_is_its_teacher(built: Build) -> None:
    cache = built()
    assert cache.recipe.start_width == cache.recipe.teacher_hidden == WHOLE.hidden
    assert distance(cache, student_of(cache, WHOLE)) < 1e-5
    assert distance(cache, student_of(cache, WHOLE, "random")) > 0.1, "else that tells nothing"


def test_each_of_its_layers_attends_where_the_teacher_s_does(built: Build) -> None:
    cache = built()
    ids, mask = rows_of(cache)
    maps = []
    for model in (teacher_of(cache), student_of(cache, WHOLE)):
        enable_capture(model)
        capture = AttentionCapture(tuple(range(4)), torch.arange(LONG).expand(len(ids), 4, -1))
        with torch.no_grad():
            hidden_states(model, nn.functional.embedding(ids, word_embeddings(model)), mask, capture)
        maps.append(capture.rows() * mask[:, None, :, None])  # of padding no model says the same
    torch.testing.assert_close(maps[0], maps[1], atol=2e-3, rtol=0)
    assert maps[1][0, 1, 0, 10:].sum() == 0 < maps[1][0, 0, 0, 10:].sum(), "local layers see a window only"


def test_the_config_says_which_layers_are_local(built: Build) -> None:
    cache = built()
    recipe = cache.recipe
    assert (recipe.start_local_layers, recipe.start_window, recipe.start_rope) == ((1, 2), 8, (5000.0, 300.0))
    whole, half = (student_of(cache, shape).config for shape in (WHOLE, StudentShape("half", 2, 16, 2, 24)))
    assert whole.layer_types == [GLOBAL, LOCAL, LOCAL, GLOBAL]
    assert half.layer_types == [LOCAL, GLOBAL], "layers 1 and 3 of the teacher"
    assert whole.rope_parameters == half.rope_parameters == ROPE
    assert whole.local_attention == half.local_attention == 8


@pytest.mark.parametrize("init", ["cache", "random"])
def test_without_a_start_all_layers_are_global(built: Build, init: str) -> None:
    config = student_of(built(), WHOLE, init).config
    assert config.layer_types == [GLOBAL] * 4 and not config.classifier_bias


@pytest.mark.parametrize("shape", NARROWER, ids=lambda shape: shape.name)
def test_a_smaller_one_is_nearer_than_one_of_the_embeddings(built: Build, shape: StudentShape) -> None:
    cache = built()
    student = student_of(cache, shape)
    assert all(parameter.isfinite().all() for parameter in student.parameters())
    assert distance(cache, student) < distance(cache, student_of(cache, shape, "cache"))


def test_wider_students_are_nearer(built: Build) -> None:
    cache = built()
    shapes = [StudentShape("x", 4, width, width // 8, width * 3 // 2) for width in (8, 16, 24, 32)]
    distances = [distance(cache, student_of(cache, shape)) for shape in shapes]
    assert distances == sorted(distances, reverse=True), distances


def within_15_dimensions(model: Any) -> None:
    """A teacher whose stream has 15 of 32 dimensions, with two heads and half of the neurons at work."""
    plane = torch.linalg.qr(torch.cat([torch.ones(32, 1), torch.randn(32, 15)], 1)).Q[:, 1:]  # without the mean
    project = plane @ plane.T
    model.model.embeddings.tok_embeddings.weight.copy_(model.model.embeddings.tok_embeddings.weight @ project)
    model.model.embeddings.norm.weight.fill_(1.3)
    for number, layer in enumerate(model.model.layers):
        layer.attn.Wo.weight.copy_(project @ layer.attn.Wo.weight)
        for head in ((0, 2), (1, 3), (0, 1), (2, 3))[number]:
            layer.attn.Wo.weight[:, 8 * head : 8 * head + 8] = 0
        layer.mlp.Wo.weight.copy_(project @ layer.mlp.Wo.weight)
        layer.mlp.Wo.weight[:, number % 2 :: 2] = 0


def test_a_rotation_is_exact(built: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """All products of hidden states are those of the teacher, in half of its dimensions."""
    monkeypatch.setattr(components, "FEATURE_WEIGHT", 0.0)  # the head is not linear, and may need more dimensions
    cache = built(within_15_dimensions)
    ids, mask = rows_of(cache)
    products = []
    for model in (teacher_of(cache), student_of(cache, StudentShape("half", 4, 16, 2, 24))):
        last: list[Tensor] = []
        model.model.final_norm.register_forward_pre_hook(lambda _, inputs, last=last: last.append(inputs[0]))
        with torch.no_grad():
            model(ids, attention_mask=mask)
        hidden = nn.functional.layer_norm(last[0][mask], last[0].shape[-1:])
        products.append(hidden @ hidden.T / hidden.shape[1])
    torch.testing.assert_close(products[0], products[1], atol=3e-3, rtol=0)


def weights_of(index: int, turn: Tensor) -> dict[str, Tensor]:
    """Those of a narrow student of one layer, from a start of two layers with all matrices 1."""
    anatomy = anatomy_of("ModernBertForMaskedLM")
    assert anatomy is not None
    arrays = {
        "second_moment": torch.tensor([1.0, 4.0, 4.0, 1.0, 9.0, 16.0, 0.25])[:, None].expand(7, 8).double(),
        "attention": torch.ones(2, 4, 8, 8).double(),
        "ffn": torch.ones(2, 3, 6, 8).double(),
        "embedding_scale": torch.arange(8).double(),
    }

    def read(name: str, *region: slice) -> Tensor:
        return arrays[name][region].clone()

    recipe = small_recipe(teacher_hidden=16)
    return body_weights(read, recipe, anatomy, [index], StudentShape("x", 1, 8, 1, 6), turn)


def test_a_first_layer_that_had_a_norm_reads_embeddings_as_long_as_its_inputs_were() -> None:
    for index, factor in ((0, 1.0), (1, 1.5)):
        weights = weights_of(index, torch.eye(8).double())
        torch.testing.assert_close(weights["model.layers.0.attn.Wqkv.weight"], factor * torch.ones(24, 8).double())
        torch.testing.assert_close(weights["model.layers.0.attn.Wo.weight"], torch.ones(8, 8).double())
        assert "model.layers.0.attn_norm.weight" not in weights


def test_norms_scale_to_the_length_that_the_components_kept_had() -> None:
    """All but the last, which norms remove. Each channel is scaled as the components in it, on average."""
    turn = torch.linalg.qr(torch.arange(64).double().sin().view(8, 8)).Q
    weights = weights_of(1, turn)
    ones = torch.ones(8).double() * (7 / 8) ** 0.5
    torch.testing.assert_close(weights["model.layers.0.mlp_norm.weight"], 4 * ones)
    torch.testing.assert_close(weights["model.final_norm.weight"], 0.5 * ones)
    expected = (turn.square() * torch.arange(8)[:, None]).sum(0) * ones
    torch.testing.assert_close(weights["model.embeddings.norm.weight"], expected)


def test_a_narrow_start_gives_the_same_students(built: Build) -> None:
    shape = StudentShape("two heads", 4, 16, 2, 24)
    wide, narrow = (student_of(built(None, width), shape).state_dict() for width in (None, 16))
    for name, weight in wide.items():
        torch.testing.assert_close(weight, narrow[name], atol=2e-3, rtol=2e-3, msg=name)


def test_a_start_of_some_layers(built: Build) -> None:
    cache = built(None, None, "1,3")
    student = student_of(cache, StudentShape("two", 2, 32, 4, 48))
    assert cache.recipe.start_local_layers == (1,)
    assert student.config.layer_types == [LOCAL, GLOBAL]
    whole = student_of(built(), WHOLE)
    for part in ("attn.Wqkv", "mlp.Wi", "mlp.Wo"):
        found, expected = student.get_submodule(f"model.layers.1.{part}"), whole.get_submodule(f"model.layers.3.{part}")
        torch.testing.assert_close(found.weight, expected.weight, atol=1e-2, rtol=0)


@pytest.mark.parametrize("name", ["small", "tiny", "nano"])
def test_shapes_by_size_have_heads_of_the_teacher_s_size(built: Build, name: str) -> None:
    cache = built()
    shape = choose_shape(name, cache.recipe, cache.recipe.vocab_size)
    assert shape.hidden == 8 * shape.heads and shape.layers == 4
    assert student_of(cache, shape).config.hidden_size == shape.hidden
    large = choose_shape(name, replace(cache.recipe, teacher_heads=2), cache.recipe.vocab_size)
    assert large.hidden == 16 * large.heads


def test_heads_of_another_size_do_not_fit(built: Build) -> None:
    expected = r"does not fit the start of .* \(dimensions of a head 4, the start has whole heads of 8\); use"
    with pytest.raises(CometError, match=expected):
        student_of(built(), StudentShape("thin", 2, 16, 4, 24))


def test_it_is_trained_and_loaded_by_plain_transformers(built: Build, tmp_path: Path) -> None:
    cache = built()
    result = distill([cache], StudentConfig(tmp_path / "student", student="small", vocabulary="full", steps=20))
    assert result.after.kl < result.before.kl
    model, loading = AutoModelForMaskedLM.from_pretrained(result.output, output_loading_info=True)
    assert not any(loading.values()), loading
    assert model.config.layer_types == [GLOBAL, LOCAL, LOCAL, GLOBAL]
    assert model.config.rope_parameters == ROPE
