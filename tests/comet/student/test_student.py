"""How a student starts from embeddings, and what its objective takes of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.students import NANO

from cache_tools import Cache, build_cache
from cache_tools.attention import AttentionCapture
from cache_tools.errors import CometError
from cache_tools.settings import BuildSettings
from cache_tools.text.tokenizer import load_tokenizer
from comet.student.family import StudentShape
from comet.student.model import new_student, token_counts
from comet.student.vocabulary import full_vocabulary
from comet.train.dataset import CacheRows, collate, shards_of
from comet.train.distiller import Distiller, match_layers
from comet.train.objective import DEFAULT, PAPER
from comet.train.validation import validate, validation_rows


def test_a_student_starts_no_worse_than_a_unigram_model(cache: Cache) -> None:
    student = new_student(NANO, [cache], full_vocabulary(cache.recipe), dropout=0.0, seed=0)
    distiller = Distiller(student, cache.recipe, DEFAULT)
    start = validate(distiller, validation_rows(shards_of([cache], "validation")), 32, torch.device("cpu"))
    counts = np.ones(cache.recipe.vocab_size)
    counts[cache.vocabulary.id] += cache.vocabulary.count
    target_id = np.concatenate(
        [cache.read_shard("validation", s.index)["target_id"] for s in shards_of([cache], "validation")]
    )
    unigram = -np.log(counts / counts.sum())[target_id[target_id >= 0]].mean()
    assert start.cross_entropy <= unigram + 0.01
    assert start.targets == (target_id >= 0).sum()


def test_two_caches_of_one_text_count_its_tokens_once(cache: Cache, settings: BuildSettings, tmp_path: Path) -> None:
    again = build_cache(replace(settings, out=tmp_path / "again.zarr", seed=5))
    counts = token_counts([cache, again], full_vocabulary(cache.recipe))
    assert counts.sum() == cache.provenance["text_tokens"]
    np.testing.assert_array_equal(counts, token_counts([cache], full_vocabulary(cache.recipe)))


def test_a_student_larger_than_memory_is_refused(cache: Cache) -> None:
    shape = StudentShape("huge", 2, 2**20, 4, 2**20)
    expected = r"^--student huge \(2 layers × 1048576, 4 heads, FFN 1048576\): its weights take [\d,]+\.\d GB of memory"
    with pytest.raises(CometError, match=expected):
        new_student(shape, [cache], full_vocabulary(cache.recipe), dropout=0.0, seed=0)


def test_a_student_s_attention_is_captured_as_its_teacher_s(cache: Cache) -> None:
    student = new_student(NANO, [cache], full_vocabulary(cache.recipe), dropout=0.0, seed=0).eval()
    length = torch.tensor([40, 5])
    ids = torch.randint(5, 1000, (2, 40))
    mask = torch.arange(40) < length[:, None]
    student.set_attn_implementation("eager")
    with torch.no_grad():
        eager = student.roberta(ids, attention_mask=mask, output_attentions=True).attentions
        Distiller(student, cache.recipe, replace(DEFAULT, attention_weight=0.0))  # switches the capture on
        queries = torch.tensor([[[0, 39], [7, 20]], [[1, 4], [0, 3]]])
        capture = AttentionCapture((0, 2), queries)
        student.roberta(ids, attention_mask=mask, attention_capture=capture)
    for index, layer in enumerate((0, 2)):
        expected = eager[layer].mean(1)[torch.arange(2)[:, None], queries[:, index]]
        torch.testing.assert_close(capture.rows()[:, index], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("cached", "depth", "student", "expected"), [
    ((23,), 24, 6, ((23, 5),)),
    (tuple(range(24)), 24, 6, ((3, 0), (7, 1), (11, 2), (15, 3), (19, 4), (23, 5))),
    ((3, 7, 11, 15, 19, 23), 24, 6, ((3, 0), (7, 1), (11, 2), (15, 3), (19, 4), (23, 5))),
    ((0, 3), 4, 3, ((0, 0), (3, 2))),
    ((0, 1), 2, 6, ((0, 2), (1, 5))),
])  # fmt: skip
def test_layers_are_matched_by_depth(
    cache: Cache, cached: tuple[int, ...], depth: int, student: int, expected: tuple[tuple[int, int], ...]
) -> None:
    recipe = replace(cache.recipe, attention_layers=cached, teacher_layers=depth)
    assert match_layers(recipe, student) == expected


def test_a_temperature_that_was_not_stored_is_refused(cache: Cache) -> None:
    student = new_student(NANO, [cache], full_vocabulary(cache.recipe), dropout=0.0, seed=0)
    with pytest.raises(CometError, match=r"temperature 3: the cache holds logits for 1,2 only.*--temperatures 1,2,3"):
        Distiller(student, cache.recipe, replace(DEFAULT, temperature=3.0))


def test_the_paper_s_recipe_learns_a_projection(cache: Cache) -> None:
    student = new_student(replace(NANO, layers=4), [cache], full_vocabulary(cache.recipe), dropout=0.0, seed=0)
    distiller = Distiller(student, cache.recipe, PAPER)
    rows = CacheRows(shards_of([cache], "train"), cache.extent.arrays)
    losses = distiller(**collate(rows.__getitems__([0, 1, 2]), cache.recipe))
    losses["loss"].backward()
    assert distiller.projection is not None and distiller.projection.grad is not None
    assert distiller.projection.grad.abs().sum() > 0
    expected = 0.5 * losses["kd"] + 0.5 * losses["attention"]
    torch.testing.assert_close(losses["loss"].detach(), expected)


def test_the_tokenizer_comes_from_the_cache(cache: Cache) -> None:
    tokenizer = load_tokenizer(cache.tokenizer_folder)
    ids = tokenizer("Muraho neza, amakuru?")["input_ids"]
    assert ids[0] == cache.recipe.bos_id and ids[-1] == cache.recipe.eos_id
