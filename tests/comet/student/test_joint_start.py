"""One start of several caches: what a single start of all their texts would be."""

import lzma
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.settings import build_settings
from helpers.started import divergence, logits_of, student_of
from helpers.tiny_teachers import bert, modernbert
from torch import Tensor
from transformers import AutoModelForMaskedLM

from cache_tools import Cache, build_cache
from cache_tools.anatomy import anatomy_of
from cache_tools.build.start import start_batches
from cache_tools.store.start import read_start
from cache_tools.teacher.model import load_teacher
from cache_tools.teacher.start import make_start
from cache_tools.teacher.start.activations import Activations, LayerMoments, Moments, observe
from cache_tools.teacher.start.frame import StartFrame
from cache_tools.verify.start import _comparable
from comet.student.family import StudentShape
from comet.student.joint_start import JointStart, join_starts
from comet.student.model import begins_with, new_student
from comet.student.vocabulary import full_vocabulary, trimmed_vocabulary

EXACT = 2e-3  # relative: the matrices of a start are float16


@pytest.fixture(scope="module", params=["xlm-r", "bert", "modernbert"])
def pair(
    request: pytest.FixtureRequest, sample_text: Path, sample_teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Cache]:
    """Two caches of one teacher, each of other sentences."""
    folder = tmp_path_factory.mktemp("pair")
    teacher = sample_teacher
    if request.param != "xlm-r":
        teacher = folder / "teacher"
        teacher.mkdir()
        {"bert": bert, "modernbert": modernbert}[request.param](teacher, sample_text)
    lines = sample_text.read_text(encoding="utf-8").splitlines()
    caches = []
    for name, part in (("one", lines[:60]), ("two", lines[60:160])):
        (folder / f"{name}.txt").write_text("\n".join(part), encoding="utf-8")
        caches.append(build_cache(build_settings(folder / f"{name}.zarr", teacher, folder / f"{name}.txt")))
    return caches


def reading(cache: Cache) -> Callable[..., Tensor]:
    return lambda name, *region: torch.from_numpy(read_start(cache, name, *region)).double()


def joined(*caches: Cache) -> JointStart:
    return join_starts([cache.recipe for cache in caches], [reading(cache) for cache in caches])


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_a_start_joined_with_itself_is_itself(pair: list[Cache]) -> None:
    """But for the order of components, which the diagonals tell nearly."""
    cache, *_ = pair
    read, joint = reading(cache), joined(cache, cache)
    turn = read("basis").T @ joint.arrays["basis"]  # [components, joint components]
    largest = turn.abs().argmax(0)
    assert largest.unique().numel() == cache.recipe.start_width, "each is one of the start's"
    torch.testing.assert_close(turn.abs().amax(0), torch.ones(len(turn)).double())
    for name in set(joint.arrays) - {"head"}:
        expected, array = read(name), joint.arrays[name]
        if name in ("attention_vector", "ffn_output", "norm"):
            of_components = [0, 4] if name == "attention_vector" else [0, 1]
            expected, array = expected[:, of_components] @ turn, array[:, of_components]
        elif array.shape[-1] == len(turn) and name not in ("second_moment", "embedding_scale"):
            expected = expected @ turn
        elif name in ("second_moment", "embedding_scale"):
            expected = expected[..., largest]
        assert distance(array, expected) < EXACT, name
    head = read("head")
    assert distance(joint.arrays["head"], turn.T @ head @ turn) < 0.01
    for rows, bias in zip(joint.rows, joint.bias, strict=True):
        assert distance(rows, read("embedding") @ turn) < EXACT
        torch.testing.assert_close(bias, read("head_bias"))


def pooled(found: list[Activations]) -> Activations:
    """The moments of all texts together, each counted the same."""

    def mean(moments: list[Moments]) -> Moments:
        means = (torch.stack([getattr(one, field.name) for one in moments]).mean(0) for field in fields(Moments))
        return Moments(*means)

    layers = tuple(
        LayerMoments(*(mean([getattr(one, field.name) for one in layer]) for field in fields(LayerMoments)))
        for layer in zip(*(one.layers for one in found), strict=True)
    )
    embedding, hidden, features = (
        mean([getattr(one, name) for one in found]) for name in ("embedding_norm", "hidden", "features")
    )
    cross = torch.stack([one.cross for one in found]).mean(0)
    return Activations(embedding, layers, hidden, features, cross, sum(one.targets for one in found))


def teacher_folder(cache: Cache, sample_teacher: Path) -> Path:
    own = cache.root.parent / "teacher"
    return own if own.is_dir() else sample_teacher


def test_its_arrays_are_those_of_all_texts(pair: list[Cache], sample_teacher: Path) -> None:
    """As computed from the teacher's activations on both texts, in the same components."""
    joint, recipe = joined(*pair), pair[0].recipe
    teacher = load_teacher(str(teacher_folder(pair[0], sample_teacher)))
    anatomy = anatomy_of(recipe.teacher_architecture)
    assert anatomy is not None
    found = pooled(
        [observe(teacher, anatomy, start_batches(c.recipe, lambda s, c=c: c.read_tokens("train", s)[0])) for c in pair]  # type: ignore[misc]
    )
    orders = (torch.from_numpy(read_start(pair[0], name)).long() for name in ("head_order", "neuron_order"))
    frame = StartFrame(joint.arrays["basis"], *orders)
    ids, count = pair[0].vocabulary.id, pair[0].vocabulary.count
    whole = make_start(teacher, anatomy, recipe, found, ids, count, frame)
    mine = {name: array.numpy() for name, array in joint.arrays.items()}
    mine |= {"embedding": joint.rows[0].numpy(), "head_bias": joint.bias[0].numpy()}
    expected = {name: array.astype(np.float64) for name, array in whole.items() if name in mine}
    for name, array in _comparable(expected, recipe).items():
        if name not in ("second_moment", "embedding_scale", "norm", "head"):  # of which only diagonals are known
            # the bias of all other tokens is the log of a mean, which a shift of each token gives nearly
            limit = 0.02 if name == "head_bias" else EXACT
            found_array = torch.from_numpy(_comparable(mine, recipe)[name].astype(np.float64))
            assert distance(found_array, torch.from_numpy(array)) < limit, name
    if "norm" in mine:
        assert np.allclose(mine["norm"][:, :2], expected["norm"][:, :2], atol=1e-3), "both means"
    hidden = distance(torch.from_numpy(mine["head"][2]), torch.from_numpy(expected["head"][2]).double())
    assert hidden < 0.01, "the covariance of hidden states"


def test_what_tells_the_texts_apart_has_a_component(pair: list[Cache]) -> None:
    """Means that are far apart in a direction in which neither text varies."""
    cache, width = pair[0], pair[0].recipe.start_width
    read, shift = reading(cache), torch.zeros(width).double()
    shift[-1] = 100 * read("norm" if not cache.recipe.start_rope else "head_mean").abs().max()

    def with_other_features(name: str, *region: slice) -> Tensor:
        found = read(name, *region)
        if name == "head_bias":
            found[1] += read("embedding") @ shift
        return found

    def with_other_stream(name: str, *region: slice) -> Tensor:
        found = read(name, *region)
        if name == "norm":
            found[:, 0] += shift
        return found

    others = [with_other_features] if cache.recipe.start_rope else [with_other_features, with_other_stream]
    for other in others:
        joint = join_starts([cache.recipe] * 2, [read, other])
        leading = read("basis").T @ joint.arrays["basis"][:, 0]
        assert abs(leading[-1]) > 0.99, other.__name__


def test_a_narrower_start_stays_within_its_components(halves: tuple[Cache, Cache]) -> None:
    caches = list(halves)
    joint = joined(*caches)
    basis, found = reading(caches[0])("basis"), joint.arrays["basis"]
    torch.testing.assert_close(basis @ basis.T, found @ found.T)
    torch.testing.assert_close(found.T @ found, torch.eye(96).double())
    shape = StudentShape("cut", 4, 48, 6, 96)
    student = new_student(shape, caches, full_vocabulary(caches[0].recipe), 0.0, 0, "start")
    assert all(parameter.isfinite().all() for parameter in student.parameters())
    assert begins_with("start", shape, caches) == (
        "layers 0, 1, 2, 3 of the teacher's 0–3, cut to width 48 in the components of the texts of one.zarr, two.zarr "
        "together"
    )


def test_a_student_as_wide_as_its_teacher_is_its_teacher(pair: list[Cache], sample_teacher: Path) -> None:
    """It needs no joint components, but the tokens of both."""
    recipe = pair[0].recipe
    size = (len(recipe.start_layers), recipe.teacher_hidden, recipe.teacher_heads, recipe.start_neurons)
    shape = StudentShape("whole", *size)
    assert "together" not in begins_with("start", shape, pair)
    model = AutoModelForMaskedLM.from_pretrained(teacher_folder(pair[0], sample_teacher)).eval()
    both = new_student(shape, pair, full_vocabulary(recipe), 0.0, 0, "start").eval()
    for cache in pair:
        assert divergence(logits_of(model, cache), logits_of(both, cache)) < 1e-4
    alone = student_of(pair[0], shape)
    assert divergence(logits_of(model, pair[1]), logits_of(alone, pair[1])) > 1e-3


@pytest.mark.slow
def test_two_languages_begin_nearer_than_in_the_components_of_one(shared: Path, tmp_path: Path) -> None:
    """The KL of each over the tokens of its own text, before training, against the student of one cache alone."""
    caches = []
    for language in ("kin", "swa"):
        text = tmp_path / f"{language}.txt"
        with lzma.open(shared / "data" / "text" / f"{language}.txt.xz", "rt", encoding="utf-8") as lines:
            text.write_text("".join(islice(lines, 300)), encoding="utf-8")
        settings = build_settings(tmp_path / f"{language}.zarr", shared / "teacher", text)
        changes = {"max_tokens": 6_000, "seq_len": 128, "language": language}
        caches.append(build_cache(replace(settings, **changes)))
    shape, vocabulary = StudentShape("cut", 6, 96, 8, 384), trimmed_vocabulary(caches)
    teacher = AutoModelForMaskedLM.from_pretrained(shared / "teacher").eval()
    together = new_student(shape, caches, vocabulary, 0.0, 0, "start").eval()
    for cache in caches:
        alone = divergence(logits_of(teacher, cache), logits_of(student_of(cache, shape), cache))
        found = divergence(logits_of(teacher, cache), logits_of(together, cache, vocabulary))
        assert alone < found < 1.7 * alone
