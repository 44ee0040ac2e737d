"""Embeddings and positions of a student that begins with a start: every token its own, of one cache or several."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.started import full_shape, logits_of, student_of
from transformers import AutoModelForMaskedLM, PreTrainedModel

from cache_tools import Cache, build_cache
from cache_tools.models import max_positions
from cache_tools.settings import BuildSettings
from cache_tools.store.start import read_start
from comet.student.family import StudentShape, output_layer, word_embeddings
from comet.student.model import begins_with, new_student
from comet.student.start import LINEAR
from comet.student.vocabulary import full_vocabulary, trimmed_vocabulary


@pytest.mark.parametrize("part", [1, 2], ids=["full width", "half"])
def test_positions_begin_after_the_padding(family: str, started: Cache, teacher: PreTrainedModel, part: int) -> None:
    """XLM-R counts them from the padding's id on, BERT from 0."""
    shape = full_shape(started)
    shape = replace(shape, hidden=shape.hidden // part, intermediate=shape.intermediate // part)
    student = student_of(started, shape)
    theirs, mine = (model.base_model.embeddings.position_embeddings.weight.detach() for model in (teacher, student))
    first = {"xlm-r": 2, "bert": 0}[family]
    count = min(max_positions(teacher.config), max_positions(student.config))
    types = teacher.base_model.embeddings.token_type_embeddings.weight[0].detach()
    whole = (theirs[first : first + count] + types).double()
    found = mine[first : first + count].double()
    if part == 1:
        torch.testing.assert_close(found, whole, rtol=0, atol=4e-3)
    basis = torch.from_numpy(read_start(started, "basis")).double()[:, : shape.hidden]
    rotated = whole @ basis
    close = {"rtol": 5e-3, "atol": 1e-2}
    torch.testing.assert_close(found @ found.T, rotated @ rotated.T, **close)
    assert not student.base_model.embeddings.token_type_embeddings.weight.any()


def test_a_trimmed_student_has_the_same_embeddings_and_logits(started: Cache) -> None:
    """Those of special tokens, too, and of all others the mean."""
    shape = replace(full_shape(started), hidden=full_shape(started).hidden // 2)
    shape = replace(shape, intermediate=shape.intermediate // 2)
    vocabulary = trimmed_vocabulary([started])
    whole, trimmed = student_of(started, shape), student_of(started, shape, vocabulary)
    kept = torch.from_numpy(vocabulary.teacher_id)
    torch.testing.assert_close(word_embeddings(trimmed), word_embeddings(whole)[kept], rtol=0, atol=0)
    torch.testing.assert_close(output_layer(trimmed).bias, output_layer(whole).bias[kept], rtol=0, atol=0)
    torch.testing.assert_close(logits_of(trimmed, started, vocabulary), logits_of(whole, started))
    special = list(started.recipe.special_ids)
    rows = torch.from_numpy(read_start(started, "embedding")).double()[:, : shape.hidden]
    found = word_embeddings(trimmed)[vocabulary.student_id[special]].double()
    stored = rows[started.recipe.seen_size : started.recipe.seen_size + len(special)]
    torch.testing.assert_close(found @ found.T, stored @ stored.T, rtol=1e-4, atol=1e-4)
    # what norms subtract is the least component, and no other
    torch.testing.assert_close(found.mean(1) * shape.hidden**0.5, stored[:, -1], rtol=1e-4, atol=1e-4)
    known = torch.zeros(started.recipe.vocab_size, dtype=torch.bool)
    known[torch.from_numpy(started.vocabulary.id.astype(np.int64))] = True
    known[special] = True
    others = word_embeddings(whole)[~known]
    assert len(others) > 5 and bool((others == others[0]).all())
    torch.testing.assert_close(others[0].double().norm(), rows[-1].norm())
    bias = float(read_start(started, "head_bias")[1, -1])
    assert bool((output_layer(whole).bias[~known] == bias).all()) and abs(bias) > 0.01


def test_the_head_is_the_linear_map_whose_logits_are_nearest(family: str, started: Cache) -> None:
    """Least squares of features by hidden states; told by its products with embeddings, in any basis the same."""
    shape = replace(full_shape(started), hidden=full_shape(started).hidden // 2)
    shape = replace(shape, intermediate=shape.intermediate // 2)
    student, width = student_of(started, shape), shape.hidden
    metric, cross, hidden = torch.from_numpy(read_start(started, "head")).double()[:, :width, :width]
    dense = metric.inverse() @ cross @ hidden.inverse()
    scale = (dense @ hidden @ dense.T).diag().mean().sqrt()  # the deviation of its outputs
    path = {"xlm-r": "lm_head.dense", "bert": "cls.predictions.transform.dense"}[family]
    weight, bias = (p.detach().double() for p in student.get_submodule(path).parameters())
    found = word_embeddings(student)[list(started.recipe.special_ids)].double()
    size = started.recipe.seen_size
    stored = torch.from_numpy(read_start(started, "embedding")).double()[size:-1, :width]
    close = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(found @ weight @ found.T, stored @ (dense / scale) @ stored.T, **close)
    mean = torch.from_numpy(read_start(started, "head_mean")).double()[:width]
    torch.testing.assert_close(found @ (bias - LINEAR), -stored @ (dense / scale) @ mean, **close)
    inputs: list[torch.Tensor] = []
    student.get_submodule(path).register_forward_hook(lambda module, hidden, output: inputs.append(output))
    logits_of(student, started)
    bent = (torch.nn.functional.gelu(inputs[0]) - inputs[0]).abs() > 0.02
    assert float(bent.double().mean()) < 0.01, "it is linear in spite of its activation"


def test_tokens_of_another_cache_take_its_embeddings(halves: tuple[Cache, Cache], sample_teacher: Path) -> None:
    one, two = halves
    shape = StudentShape("any", 4, 96, 6, 384)
    vocabulary = full_vocabulary(one.recipe)
    both = new_student(shape, [one, two], vocabulary, 0.0, 0, "start")
    ids = [torch.from_numpy(cache.vocabulary.id.astype(np.int64)) for cache in halves]
    only = ids[1][~torch.isin(ids[1], ids[0])]
    assert len(only) > 100
    teacher = AutoModelForMaskedLM.from_pretrained(sample_teacher, dtype=torch.float32)
    basis = torch.from_numpy(read_start(one, "basis")).double()  # which all components of a student lie within
    expected = word_embeddings(teacher)[only].double() @ basis
    found = word_embeddings(both)[only].double()
    torch.testing.assert_close(found @ found.T, expected @ expected.T, rtol=1e-2, atol=5e-2)


def test_of_starts_of_other_layers_only_the_tokens_are_taken(
    settings: BuildSettings, halves: tuple[Cache, Cache], tmp_path: Path
) -> None:
    one, two = halves
    some = build_cache(
        replace(settings, out=tmp_path / "some.zarr", text=(str(two.root.with_name("two.txt")),), start_layers="1,3")
    )
    shape, vocabulary = StudentShape("any", 4, 96, 6, 384), full_vocabulary(one.recipe)
    both, first = (new_student(shape, caches, vocabulary, 0.0, 0, "start") for caches in ([one, some], [one]))
    known = torch.isin(torch.arange(len(vocabulary)), torch.from_numpy(one.vocabulary.id.astype(np.int64)))
    known |= torch.isin(torch.arange(len(vocabulary)), torch.tensor(one.recipe.special_ids))
    for name, parameter in first.state_dict().items():
        kept = known if len(parameter) == len(vocabulary) else slice(None)
        torch.testing.assert_close(both.state_dict()[name][kept], parameter[kept], rtol=0, atol=0)
    assert not torch.equal(word_embeddings(both), word_embeddings(first))
    assert "together" not in begins_with("start", shape, [one, some])


def test_several_caches_with_starts_after_one_without(halves: tuple[Cache, Cache], unstarted: Cache) -> None:
    shape, vocabulary = StudentShape("any", 4, 96, 6, 384), full_vocabulary(unstarted.recipe)
    alone = new_student(shape, [halves[0]], vocabulary, 0.0, 0, "start")
    found = new_student(shape, [unstarted, halves[0]], vocabulary, 0.0, 0, "start")
    for name, parameter in alone.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], parameter, rtol=0, atol=0)
