"""The close-up says of each target what the validation says of all, and its bins are those of a plain loop."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.students import NANO
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cache_tools import Cache, open_cache
from comet.report import analysis
from comet.report.analysis import (
    Analysis,
    AnnotatedRow,
    Guess,
    MaskedPosition,
    analyse,
    by_frequency,
    look_at_rows,
)
from comet.report.summary import sample_row
from comet.student.model import new_student
from comet.student.vocabulary import full_vocabulary, student_tokenizer, trimmed_vocabulary
from comet.train.dataset import CacheRows, collate, in_vocabulary, shards_of
from comet.train.distiller import Distiller
from comet.train.objective import DEFAULT
from comet.train.validation import validate, validation_rows

CPU = torch.device("cpu")


def distiller_of(cache: Cache) -> Distiller:
    return Distiller(new_student(NANO, [cache], full_vocabulary(cache.recipe), 0.0, seed=0), cache.recipe, DEFAULT)


def counts_of(cache: Cache) -> np.ndarray:
    counts = np.zeros(cache.recipe.vocab_size, dtype=np.int64)
    counts[cache.vocabulary.id] = cache.vocabulary.count
    return counts


@pytest.fixture(scope="module")
def tokenizer(cache: Cache) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(cache.tokenizer_folder, local_files_only=True)


@pytest.fixture(scope="module")
def look(cache: Cache, tokenizer: PreTrainedTokenizerBase) -> Analysis:
    return analyse(distiller_of(cache), shards_of([cache], "validation"), tokenizer, counts_of(cache), CPU)


@pytest.fixture(scope="module")
def plain(cache: Cache) -> SimpleNamespace:
    """All validation rows as one batch, and what plain transformers makes of them."""
    rows = CacheRows(shards_of([cache], "validation"), cache.extent.arrays)
    batch = collate(rows.__getitems__(list(range(len(rows)))), cache.recipe)
    student = new_student(NANO, [cache], full_vocabulary(cache.recipe), 0.0, seed=0).eval()
    student.set_attn_implementation("eager")
    mask = torch.arange(batch["input_ids"].shape[1]) < batch["length"][:, None]
    with torch.no_grad():
        output = student(batch["input_ids"], attention_mask=mask, output_attentions=True)
    logits = output.logits[batch["target_row"], batch["target_position"]]
    return SimpleNamespace(batch=batch, probability=logits.softmax(1), attentions=output.attentions)


def assert_means(look: Analysis, distiller: Distiller, cache: Cache, collator: Any = None) -> None:
    measured = validate(distiller, validation_rows(shards_of([cache], "validation")), 8, CPU, collator)
    assert len(look.target_id) == measured.targets
    assert look.kl.mean() == pytest.approx(measured.kl, rel=1e-5)
    assert look.correct.mean() == pytest.approx(measured.accuracy)
    assert look.teacher_correct.mean() == pytest.approx(measured.teacher_accuracy)
    assert look.agrees.mean() == pytest.approx(measured.agreement)


@pytest.mark.parametrize("kept", ["topk", "threshold"])
def test_means_over_the_targets_are_the_validation_s(kept: str, request: pytest.FixtureRequest) -> None:
    cache = request.getfixturevalue("cache" if kept == "topk" else "threshold_cache")
    distiller = distiller_of(cache)
    tokenizer = AutoTokenizer.from_pretrained(cache.tokenizer_folder, local_files_only=True)
    look = analyse(distiller, shards_of([cache], "validation"), tokenizer, counts_of(cache), CPU)
    assert_means(look, distiller, cache)
    assert look.correct.mean() != look.teacher_correct.mean(), "else mixing them up would go unnoticed"


def test_a_trimmed_student_is_looked_at_in_its_own_ids(cache: Cache) -> None:
    vocabulary = trimmed_vocabulary([cache])
    student = new_student(NANO, [cache], vocabulary, 0.0, seed=0)
    distiller = Distiller(student, cache.recipe, DEFAULT, vocabulary)

    def translated(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return in_vocabulary(collate(arrays, cache.recipe), vocabulary, cache.recipe)

    shards, counts = shards_of([cache], "validation"), counts_of(cache)
    tokenizer = student_tokenizer(cache, vocabulary)
    look = analyse(distiller, shards, tokenizer, counts[vocabulary.teacher_id], CPU, translated)
    assert_means(look, distiller, cache, translated)
    whole = analyse(distiller_of(cache), shards, student_tokenizer(cache, full_vocabulary(cache.recipe)), counts, CPU)
    np.testing.assert_array_equal(look.count, whole.count)
    assert [e.tokens for e in look.examples] == [e.tokens for e in whole.examples]
    first = [masked.student[0].probability for masked in look.examples[0].positions]
    assert first == pytest.approx(look.confidence[: len(first)].tolist(), rel=1e-4), "nothing outside V_seen is asked"
    rows = CacheRows(shards, cache.extent.arrays)
    batch = translated(rows.__getitems__(list(range(len(rows)))))
    kept, tail = batch["topk_logprob"].exp(), batch["tail_logmass"][:, cache.recipe.temperatures.index(1.0)].exp()
    np.testing.assert_allclose(look.teacher_confidence, kept.max(1).values / (kept.sum(1) + tail), rtol=1e-4)


def test_confidence_is_the_largest_probability_of_the_softmax(look: Analysis, plain: SimpleNamespace) -> None:
    np.testing.assert_allclose(look.confidence, plain.probability.max(1).values, rtol=1e-3)
    np.testing.assert_allclose(look.teacher_confidence, plain.batch["topk_logprob"].max(1).values.exp(), rtol=1e-3)
    np.testing.assert_array_equal(look.target_id, plain.batch["target_id"])


def test_every_target_knows_how_often_its_token_occurs(look: Analysis, cache: Cache) -> None:
    count = dict(zip(cache.vocabulary.id.tolist(), cache.vocabulary.count.tolist(), strict=True))
    assert look.count.tolist() == [count[i] for i in look.target_id.tolist()]
    assert look.parameters < look.teacher_parameters == cache.recipe.teacher_parameters


def test_only_the_first_targets_are_looked_at(
    look: Analysis, cache: Cache, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(analysis, "MOST_TARGETS", 7)
    monkeypatch.setattr(analysis, "BATCH_ROWS", 1)
    short = analyse(distiller_of(cache), shards_of([cache], "validation"), tokenizer, counts_of(cache), CPU)
    np.testing.assert_array_equal(short.target_id, look.target_id[:7])
    np.testing.assert_allclose(short.kl, look.kl[:7], rtol=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_a_distiller_is_left_in_the_mode_it_was_in(
    cache: Cache, tokenizer: PreTrainedTokenizerBase, training: bool
) -> None:
    distiller = distiller_of(cache).train(training)
    analyse(distiller, shards_of([cache], "validation"), tokenizer, counts_of(cache), CPU)
    assert distiller.training is training


def test_maps_are_those_of_the_matched_layers(look: Analysis, plain: SimpleNamespace, cache: Cache) -> None:
    matched = distiller_of(cache).matched
    rows = range(analysis.EXAMPLE_ROWS)
    expected_pairs = [(row, *pair) for row in rows for pair in matched]
    assert [(p.row, p.teacher_layer, p.student_layer) for p in look.maps] == expected_pairs
    batch, size = plain.batch, cache.recipe.attention_slots
    for pair in look.maps:
        index, n = cache.recipe.attention_layers.index(pair.teacher_layer), int(batch["length"][pair.row])
        queries = -(-n // cache.recipe.attention_queries)
        block = np.arange(n) * min(n, size) // n
        expected = [np.zeros((queries, size)) for _ in range(2)]  # one query in each block
        for q in range(queries):
            at = batch["attention_query"][pair.row, index, q]
            np.add.at(expected[1][q], block, plain.attentions[pair.student_layer][pair.row, :, at, :n].mean(0).numpy())
            key, weight = (batch[f"attention_{name}"][pair.row, index, q].numpy() for name in ("key", "weight"))
            np.add.at(expected[0][q], block[key], weight)
        np.testing.assert_allclose(pair.teacher, expected[0], atol=1e-5)
        np.testing.assert_allclose(pair.student, expected[1], atol=1e-5)
        assert pair.overlap == pytest.approx(np.minimum(*expected).sum(1).mean(), abs=1e-5)
        assert 0.05 < pair.overlap < 0.99


def test_maps_end_where_a_short_row_ends(cache: Cache) -> None:
    """With 12 tokens, of one query in four and of 16 blocks."""
    distiller = distiller_of(cache)
    layers, every = len(cache.recipe.attention_layers), cache.recipe.attention_queries
    slots, queries = cache.recipe.attention_slots, -(-12 // every)
    weight = torch.zeros(1, layers, slots, 2)
    weight[:, :, :queries] = 0.5
    batch = {
        "attention_key": torch.tensor([0, 11]).expand_as(weight),
        "attention_weight": weight,
        "length": torch.tensor([12]),
    }
    student = torch.zeros(1, len(distiller.matched), slots, 12)
    student[..., [0, 11]] = 0.5
    for pair in analysis.map_pairs(batch, student, distiller):
        assert pair.teacher.shape == pair.student.shape == (queries, min(12, slots))
        assert pair.overlap == pytest.approx(1.0, abs=1e-6)


def test_without_maps_there_are_none(cache: Cache, tokenizer: PreTrainedTokenizerBase) -> None:
    student = new_student(NANO, [cache], full_vocabulary(cache.recipe), 0.0, seed=0)
    distiller = Distiller(student, cache.recipe, replace(DEFAULT, attention_weight=0.0))
    look = analyse(distiller, shards_of([cache], "validation"), tokenizer, counts_of(cache), CPU)
    assert look.maps == [] and len(look.examples) == analysis.EXAMPLE_ROWS


def test_of_a_sample_only_tokens_of_known_probability_are_shown(
    threshold_cache: Cache, tokenizer: PreTrainedTokenizerBase
) -> None:
    """What a drawn token stands for is not its probability."""
    cache = threshold_cache
    shards = shards_of([cache], "validation")
    look = analyse(distiller_of(cache), shards, tokenizer, counts_of(cache), CPU)
    rows = CacheRows(shards, cache.extent.arrays)
    batch = collate(rows.__getitems__(list(range(len(look.examples)))), cache.recipe)
    certain = batch["sample_logweight"][:, 0].exp()  # [T, k]; drawn ones weigh 1 / k, or more where the best is below
    least = 1.001 / cache.recipe.top_k
    fewer = 0
    for row, example in enumerate(look.examples):
        targets = torch.nonzero(batch["target_row"] == row)[:, 0].tolist()
        for masked, target in zip(example.positions, targets, strict=False):
            shown = {guess.text: guess.probability for guess in masked.teacher}
            known = {}
            for slot, (i, weight) in enumerate(zip(batch["sample_id"][target, 0], certain[target], strict=True)):
                if slot == 0 or (weight > least and certain[target, 0] > least):
                    known[analysis.token_text(tokenizer, int(i))] = float(weight)
            assert shown.items() == dict(sorted(known.items(), key=lambda item: -item[1])[: analysis.GUESSES]).items()
            fewer += len(shown) < analysis.GUESSES
    assert fewer


def test_without_a_tail_at_temperature_one_there_is_no_kl(cache: Cache, tokenizer: PreTrainedTokenizerBase) -> None:
    student = new_student(NANO, [cache], full_vocabulary(cache.recipe), 0.0, seed=0)
    recipe = replace(cache.recipe, temperatures=(3.0, 2.0))
    distiller = Distiller(student, recipe, replace(DEFAULT, temperature=2.0))
    look = analyse(distiller, shards_of([cache], "validation"), tokenizer, counts_of(cache), CPU)
    assert np.isnan(look.kl).all()
    assert all(math.isnan(b.kl) and not math.isnan(b.accuracy) for b in by_frequency(look))


def test_examples_show_the_row_and_the_best_guesses(
    look: Analysis, plain: SimpleNamespace, tokenizer: PreTrainedTokenizerBase
) -> None:
    batch = plain.batch
    for row, example in enumerate(look.examples):
        targets = torch.nonzero(batch["target_row"] == row)[:, 0]
        assert example.targets == len(targets)
        assert len(example.tokens) == batch["length"][row]
        shown = targets[: analysis.MOST_POSITIONS].tolist()
        assert [p.position for p in example.positions] == batch["target_position"][shown].tolist()
        for masked, target in zip(example.positions, shown, strict=True):
            true_id = int(batch["target_id"][target])
            assert masked.label == analysis.token_text(tokenizer, true_id)
            probability, ids = plain.probability[target].topk(analysis.GUESSES)
            assert [g.text for g in masked.student] == [analysis.token_text(tokenizer, i) for i in ids.tolist()]
            assert [g.probability for g in masked.student] == pytest.approx(probability.tolist(), rel=1e-3)
            assert [g.correct for g in masked.student] == (ids == true_id).tolist()
            best = batch["topk_id"][target, : analysis.GUESSES]
            assert [g.correct for g in masked.teacher] == (best == true_id).tolist()
            expected = batch["topk_logprob"][target, : analysis.GUESSES].exp().tolist()
            assert [g.probability for g in masked.teacher] == pytest.approx(expected, rel=1e-3)
    masked = [e.tokens[p.position] for e in look.examples for p in e.positions]
    assert masked.count("<mask>") > len(masked) / 2


def test_pieces_are_short_and_readable(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tokenizer.convert_tokens_to_ids(["▁mu", "<mask>", "."])
    assert [analysis.token_text(tokenizer, i) for i in ids] == ["▁mu", "<mask>", "."]
    assert analysis.token_text(tokenizer, 10**6) == "[1000000]"
    monkeypatch.setattr(analysis, "LONGEST_TOKEN", 4)
    assert analysis.token_text(tokenizer, ids[1]) == "<ma…"


def test_the_first_row_is_decoded_with_the_teacher_s_guesses(cache: Cache, tokenizer: PreTrainedTokenizerBase) -> None:
    shards = shards_of([cache], "train")
    distiller = distiller_of(cache).train()
    _, rows = look_at_rows(distiller, shards, tokenizer, CPU)
    lines = sample_row(rows[0]).split("\n")
    assert distiller.training
    arrays = cache.read_shard("train", 0)
    assert lines[0].startswith("the first row of the cache: <s>")
    assert all(f"[{number}]" in lines[0] for number in range(1, len(lines)))
    assert len(lines) == 1 + min(4, int((arrays["target_position"][0] != 65535).sum()))
    truth = tokenizer.convert_ids_to_tokens(int(arrays["target_id"][0, 0])).strip("▁")
    best = tokenizer.convert_ids_to_tokens(int(arrays["topk_id"][0, 0, 0])).strip("▁")
    assert lines[1].startswith(f"  [1] {truth}; the teacher says {best} ")


def test_of_several_caches_a_row_of_each_is_shown(
    cache: Cache, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Each student's maps and guesses are those of its own row."""
    other = open_cache(shutil.copytree(cache.root, tmp_path / "other.zarr"))
    shards = shards_of([cache, other], "validation")
    maps, rows = look_at_rows(distiller_of(cache), shards, tokenizer, CPU)
    alone_maps, alone = look_at_rows(distiller_of(cache), shards_of([cache], "validation"), tokenizer, CPU)
    assert [row.name for row in rows] == [f"{cache.root.name}, validation row 1", "other.zarr, validation row 1"]
    assert [row.name for row in alone] == ["Validation row 1", "Validation row 2"]
    assert rows[0].tokens == rows[1].tokens == alone[0].tokens
    assert [pair.row for pair in maps] == [pair.row for pair in alone_maps]


def test_a_row_cannot_drive_the_terminal() -> None:
    evil = AnnotatedRow(
        "Validation row 1",
        ["<s>", "\x1b[2Jgone", "\n\r"],
        [MaskedPosition(1, "\x1b]0;x\x07", [Guess("\x1b[31m", 0.5, False)], [])],
        1,
    )
    shown = sample_row(evil)
    assert "\x1b" not in shown
    assert len(shown.split("\n")) == 2
