"""What one forward pass of the teacher leaves in the arrays of a cache."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.attention import stored_of_row
from helpers.dense import entropies, threshold_sample
from helpers.small_caches import small_recipe
from numpy.typing import NDArray

from cache_tools.attention import AttentionCapture
from cache_tools.errors import CometError
from cache_tools.signals import ATTENTION, TOKEN_ARRAYS, UNUSED_ID, UNUSED_POSITION
from cache_tools.store.layout import group_arrays
from cache_tools.store.recipe import Recipe
from cache_tools.teacher.forward import TeacherPass, collect, host_batch, seen_mask
from cache_tools.teacher.model import Teacher, load_teacher
from cache_tools.text.draws import threshold_offsets
from cache_tools.text.masking import Masking, mask_rows

LENGTHS = [32, 9, 20, 3]
SEEN = np.arange(4, 3000, dtype=np.int32)
ROUNDING = 1 / 2048 + 1e-4  # of tails and entropies


def teacher_signals(
    teacher: Teacher, recipe: Recipe, tokens: dict[str, NDArray], seen: torch.Tensor
) -> dict[str, NDArray]:
    return collect(TeacherPass(teacher, recipe, seen).launch(host_batch(recipe, tokens)))


@pytest.fixture(scope="module")
def teacher(sample_teacher: Path) -> Teacher:
    return load_teacher(str(sample_teacher))


def recipe_for(keep: str) -> Recipe:
    sizes = {"vocab_size": 8000, "seq_len": 32, "max_targets": 9, "top_k": 16}
    return small_recipe(keep=keep, attention_layers=(1, 3), attention_queries=3, attention_keys=8, seed=5, **sizes)


def masked_batch() -> dict[str, NDArray]:
    tokens = np.random.default_rng(0).integers(4, 7999, (len(LENGTHS), 32), dtype=np.int32)
    length = np.array(LENGTHS, dtype=np.uint16)
    tokens[:, 0], tokens[np.arange(len(LENGTHS)), length - 1] = 0, 2
    tokens[np.arange(32) >= length[:, None]] = 1
    rows = mask_rows(tokens, length, 0, Masking(0.3, 5, 7999, (0, 1, 2, 3, 7999), SEEN))
    return {name: getattr(rows, name) for name in TOKEN_ARRAYS}


@pytest.mark.parametrize("keep", ["topk", "threshold"])
def test_signals_have_the_shapes_and_dtypes_of_the_cache(teacher: Teacher, keep: str) -> None:
    recipe, tokens = recipe_for(keep), masked_batch()
    arrays = teacher_signals(teacher, recipe, tokens, seen_mask(SEEN, 8000))
    specs = group_arrays(recipe, "train")
    assert set(arrays) == set(specs) - set(TOKEN_ARRAYS)
    for name, array in arrays.items():
        assert (array.dtype, array.shape[1:]) == (specs[name].dtype, specs[name].shape[1:]), name
    unused = tokens["target_position"] == UNUSED_POSITION
    assert unused.any()
    for name in set(arrays) - set(ATTENTION.arrays):
        missing = arrays[name] == UNUSED_ID if name.endswith("_id") else np.isnan(arrays[name])
        assert missing[unused].all(), name
        assert not missing[~unused].any() or name == "sample_id", name  # a sample may be smaller than k


def dense_logprob(teacher: Teacher, tokens: dict[str, NDArray]) -> torch.Tensor:
    """[T, V] float64 of the whole model at the targets, row by row."""
    ids = torch.from_numpy(tokens["input_ids"]).long()
    mask = torch.arange(32) < torch.tensor(LENGTHS)[:, None]
    with torch.no_grad():
        logprob = teacher.model(ids, attention_mask=mask).logits.double().log_softmax(2)
    row, slot = np.nonzero(tokens["target_position"] != UNUSED_POSITION)
    return logprob[row, tokens["target_position"][row, slot].astype(np.int64)]


def test_the_best_tokens_are_those_of_the_whole_model(teacher: Teacher) -> None:
    recipe, tokens, seen = recipe_for("topk"), masked_batch(), seen_mask(SEEN, 8000)
    arrays, expected = teacher_signals(teacher, recipe, tokens, seen), dense_logprob(teacher, tokens)
    used = tokens["target_position"] != UNUSED_POSITION
    best = expected.topk(16)
    np.testing.assert_array_equal(arrays["topk_id"][used], best.indices)
    np.testing.assert_allclose(arrays["topk_logprob"][used], best.values, rtol=1e-3, atol=1e-4)
    others = expected.scatter(1, best.indices, -torch.inf)
    for index, temperature in enumerate(recipe.temperatures):
        for name, rest in (("tail_logmass", others), ("tail_logmass_seen", others.masked_fill(~seen, -torch.inf))):
            reference = (rest / temperature).logsumexp(1)
            np.testing.assert_allclose(arrays[name][used][:, index], reference, rtol=0, atol=ROUNDING, err_msg=name)


def test_a_sample_is_that_of_the_whole_model(teacher: Teacher) -> None:
    recipe, tokens, seen = recipe_for("threshold"), masked_batch(), seen_mask(SEEN, 8000)
    arrays, expected = teacher_signals(teacher, recipe, tokens, seen), dense_logprob(teacher, tokens)
    used = tokens["target_position"] != UNUSED_POSITION
    offsets = threshold_offsets(tokens["row_key"], tokens["target_position"], recipe.seed)[used]
    for index, temperature in enumerate(recipe.temperatures):
        probability = (expected / temperature).softmax(1)
        ids, logweight = (arrays[name][used][:, index] for name in ("sample_id", "sample_logweight"))
        differ = 0
        for target, offset in enumerate(offsets.tolist()):
            # the definition goes along the ids of the corpus first
            order = torch.cat([seen.nonzero()[:, 0], (~seen).nonzero()[:, 0]])
            sample = threshold_sample(probability[target, order], 16, offset)
            reference = {int(order[i]): math.log(weight) for i, weight in sample.items()}
            found = {int(i): float(w) for i, w in zip(ids[target], logweight[target], strict=True) if i >= 0}
            differ += len(set(found) ^ set(reference)) // 2
            for token in set(found) & set(reference):
                assert found[token] == pytest.approx(reference[token], rel=1e-3, abs=1e-4)
        assert differ <= 2, "rounding may move a draw to its neighbour, but rarely"
        for name, reference_entropy in zip(("entropy", "entropy_seen"), entropies(probability, seen), strict=True):
            np.testing.assert_allclose(arrays[name][used][:, index], reference_entropy, rtol=0, atol=ROUNDING)


def test_signals_do_not_depend_on_the_other_rows(teacher: Teacher) -> None:
    """But for the last bits: a batch is as wide as its longest row."""
    recipe, tokens, seen = recipe_for("topk"), masked_batch(), seen_mask(SEEN, 8000)
    together = teacher_signals(teacher, recipe, tokens, seen)
    for row in range(len(LENGTHS)):
        alone = teacher_signals(teacher, recipe, {n: a[row : row + 1] for n, a in tokens.items()}, seen)
        np.testing.assert_array_equal(alone["topk_id"], together["topk_id"][row : row + 1])
        np.testing.assert_allclose(alone["topk_logprob"], together["topk_logprob"][row : row + 1], rtol=2e-3)
        mine, theirs = (
            stored_of_row(arrays | {"length": tokens["length"][row:]}, 0, recipe)
            for arrays in (alone, {name: array[row:] for name, array in together.items()})
        )
        pairs = [pair for layers in zip(mine, theirs, strict=True) for pair in zip(*layers, strict=True)]
        assert len(pairs) == 2 * -(-LENGTHS[row] // 3)
        assert sum(len(one.keys() ^ other.keys()) for one, other in pairs) <= 2, "rounding may move a draw"


@pytest.mark.parametrize("keep", ["topk", "threshold"])
def test_rows_without_any_target_have_attention_and_nothing_else(teacher: Teacher, keep: str) -> None:
    """As rows of unknown tokens have, when a batch holds nothing else."""
    tokens = masked_batch()
    tokens["target_position"][:], tokens["target_id"][:] = UNUSED_POSITION, UNUSED_ID
    arrays = teacher_signals(teacher, recipe_for(keep), tokens, seen_mask(SEEN, 8000))
    of_attention = {name: arrays.pop(name) for name in ATTENTION.arrays}
    kept = stored_of_row(of_attention | {"length": tokens["length"]}, 0, recipe_for(keep))
    assert all(len(of_layer) == -(-LENGTHS[0] // 3) for of_layer in kept)
    assert {name: array.shape[:2] for name, array in arrays.items()} == dict.fromkeys(arrays, (4, 9))
    for name, array in arrays.items():
        assert (array == UNUSED_ID).all() if name.endswith("_id") else np.isnan(array).all()


def test_seen_mask_marks_the_ids_of_the_corpus() -> None:
    assert seen_mask(np.array([1, 3], dtype=np.int32), 5).tolist() == [False, True, False, True, False]


@pytest.mark.parametrize("keep", ["topk", "threshold"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_overflow_stop_the_build_with_advice(teacher: Teacher, keep: str, value: float) -> None:
    """As in float16, where the features become infinite or, after a normalisation, not a number."""
    broken = replace(teacher, transform=lambda hidden: torch.full_like(hidden, value))
    with pytest.raises(CometError, match=r"^the teacher's logits are not finite; .* use --dtype float32$"):
        teacher_signals(broken, recipe_for(keep), masked_batch(), seen_mask(SEEN, 8000))


def test_attention_that_overflows_stops_the_build_with_advice(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AttentionCapture, "rows", lambda _: torch.full((4, 2, 11, 32), float("nan")))
    with pytest.raises(CometError, match=r"^the teacher's attention is not finite; .* use --dtype float32$"):
        teacher_signals(teacher, recipe_for("topk"), masked_batch(), seen_mask(SEEN, 8000))
