"""Shapes, parameter counts, and how a student starts."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cache_tools import Cache
from cache_tools.attention import AttentionCapture, block_members, pool_weights
from cache_tools.errors import CometError
from cache_tools.text.tokenizer import load_tokenizer
from comet.student.family import XLM_R
from comet.student.model import COMET, PRESETS, choose_shape, count_parameters, new_student
from comet.student.vocabulary import full_vocabulary
from comet.train.dataset import CacheRows, collate, shards_of
from comet.train.distiller import Distiller, match_layers
from comet.train.objective import DEFAULT, PAPER
from comet.train.validation import validate, validation_rows

XLM_R_VOCABULARY = 250_002
AFRO_XLMR_LARGE, AFRO_XLMR_BASE, AFRO_XLMR_MINI = 559_890_432, 278_043_648, 117_653_760


def test_the_comet_preset_has_the_paper_s_parameters() -> None:
    assert count_parameters(COMET, XLM_R_VOCABULARY, XLM_R) == 68_937_216


@pytest.mark.parametrize(
    ("parameters", "vocab_size", "expected"),
    [
        (AFRO_XLMR_LARGE, XLM_R_VOCABULARY, "comet"),
        (AFRO_XLMR_BASE, XLM_R_VOCABULARY, "small"),
        (AFRO_XLMR_MINI, XLM_R_VOCABULARY, "tiny"),
        (3_460_160, 8_000, "nano"),
    ],
)
def test_auto_takes_the_largest_preset_85_percent_smaller(
    cache: Cache, parameters: int, vocab_size: int, expected: str
) -> None:
    recipe = replace(cache.recipe, teacher_parameters=parameters, vocab_size=vocab_size)
    other = Cache(cache.root, recipe, {"provenance": {}, "settings": {}}, cache.seal, cache.extent)
    shape = choose_shape("auto", other, other.recipe.vocab_size)
    assert shape.name == expected
    assert count_parameters(shape, vocab_size, XLM_R) <= 0.15 * parameters
    larger = PRESETS[: PRESETS.index(shape)]
    assert all(count_parameters(s, vocab_size, XLM_R) > 0.15 * parameters for s in larger)


def test_a_shape_from_a_config_file(cache: Cache, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    config = {"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40}
    path.write_text(json.dumps(config))
    shape = choose_shape(str(path), cache, cache.recipe.vocab_size)
    assert (shape.layers, shape.hidden, shape.heads, shape.intermediate) == (2, 24, 3, 40)
    path.write_text(json.dumps(config | {"num_attention_heads": 5}))
    with pytest.raises(CometError, match="24 is not a multiple of 5 heads"):
        choose_shape(str(path), cache, cache.recipe.vocab_size)
    with pytest.raises(CometError, match="expected auto, comet, small, tiny, nano, or a JSON file"):
        choose_shape("huge", cache, cache.recipe.vocab_size)


def test_a_student_starts_no_worse_than_a_unigram_model(cache: Cache) -> None:
    student = new_student(PRESETS[-1], [cache], full_vocabulary(cache.recipe), dropout=0.0, seed=0)
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


def test_student_and_teacher_pool_attention_alike(cache: Cache) -> None:
    student = new_student(PRESETS[-1], [cache], full_vocabulary(cache.recipe), dropout=0.0, seed=0).eval()
    length = torch.tensor([40, 5])
    ids = torch.randint(5, 1000, (2, 40))
    mask = torch.arange(40) < length[:, None]
    student.set_attn_implementation("eager")
    with torch.no_grad():
        eager = student.roberta(ids, attention_mask=mask, output_attentions=True).attentions
        by_definition = [pool_weights(weights, block_members(length, 40, 8)) for weights in eager]
        Distiller(student, cache.recipe, replace(DEFAULT, attention_weight=0.0))  # switches the capture on
        capture = AttentionCapture((0, 2), length, 40, 8)
        student.roberta(ids, attention_mask=mask, attention_capture=capture)
    for index, layer in enumerate((0, 2)):
        torch.testing.assert_close(capture.maps()[:, index], by_definition[layer], rtol=0, atol=1e-6)


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
    student = new_student(PRESETS[-1], [cache], full_vocabulary(cache.recipe), dropout=0.0, seed=0)
    with pytest.raises(CometError, match=r"temperature 3: the cache holds logits for 1,2 only.*--temperatures 1,2,3"):
        Distiller(student, cache.recipe, replace(DEFAULT, temperature=3.0))


def test_the_paper_s_recipe_learns_a_projection(cache: Cache) -> None:
    student = new_student(replace(PRESETS[-1], layers=4), [cache], full_vocabulary(cache.recipe), dropout=0.0, seed=0)
    distiller = Distiller(student, cache.recipe, PAPER)
    rows = CacheRows(shards_of([cache], "train"), cache.extent.arrays)
    losses = distiller(**collate(rows.__getitems__([0, 1, 2])))
    losses["loss"].backward()
    assert distiller.projection is not None and distiller.projection.grad is not None
    assert distiller.projection.grad.abs().sum() > 0
    expected = 0.5 * losses["kd"] + 0.5 * losses["attention"]
    torch.testing.assert_close(losses["loss"].detach(), expected)


def test_the_tokenizer_comes_from_the_cache(cache: Cache) -> None:
    tokenizer = load_tokenizer(cache.tokenizer_folder)
    ids = tokenizer("Muraho neza, amakuru?")["input_ids"]
    assert ids[0] == cache.recipe.bos_id and ids[-1] == cache.recipe.eos_id
