"""What one forward pass of the teacher leaves in the arrays of a cache."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_caches import small_recipe

from cache_tools.errors import CometError
from cache_tools.pooling import AttentionCapture
from cache_tools.rows import UNUSED_ID, UNUSED_POSITION, Masking, mask_rows, threshold_offsets
from cache_tools.store.layout import TOKEN_ARRAYS, group_arrays
from cache_tools.store.recipe import Recipe
from cache_tools.teacher.head import BlockedHead, Head
from cache_tools.teacher.model import Teacher, load_teacher
from cache_tools.teacher.signals import TeacherPass, collect, host_batch, seen_mask
from cache_tools.teacher.threshold import keep_threshold_sample

LENGTHS = [32, 9, 20, 3]
SEEN = np.arange(4, 3000, dtype=np.int32)


def teacher_signals(
    teacher: Teacher, recipe: Recipe, tokens: dict[str, NDArray], seen: torch.Tensor
) -> dict[str, NDArray]:
    return collect(TeacherPass(teacher, recipe, seen).launch(host_batch(recipe, tokens)))


@pytest.fixture(scope="module")
def teacher(sample_teacher: Path) -> Teacher:
    return load_teacher(str(sample_teacher))


def recipe_for(keep: str) -> Recipe:
    sizes = {"vocab_size": 8000, "seq_len": 32, "max_targets": 9, "top_k": 16, "attention_size": 8}
    return small_recipe(keep=keep, attention_layers=(1, 3), seed=5, **sizes)


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
    assert (arrays["topk_id"][unused] == UNUSED_ID).all()
    for name in set(arrays) - {"topk_id", "attention"}:
        assert np.isnan(arrays[name][unused]).all(), name
        assert not np.isnan(arrays[name][~unused]).any(), name


@pytest.mark.parametrize("keep", ["topk", "threshold"])
def test_signals_are_what_the_whole_model_says(teacher: Teacher, keep: str) -> None:
    recipe, tokens = recipe_for(keep), masked_batch()
    seen = seen_mask(SEEN, 8000)
    arrays = teacher_signals(teacher, recipe, tokens, seen)
    ids = torch.from_numpy(tokens["input_ids"]).long()
    mask = torch.arange(32) < torch.tensor(LENGTHS)[:, None]
    with torch.no_grad():
        logprob = teacher.model(ids, attention_mask=mask).logits.double().log_softmax(2)
    offsets = threshold_offsets(tokens["row_key"], tokens["target_position"], recipe.seed)
    for row, slot in np.argwhere(tokens["target_position"] != UNUSED_POSITION):
        expected = logprob[row, int(tokens["target_position"][row, slot])]
        kept = torch.from_numpy(arrays["topk_id"][row, slot]).long()
        if keep == "topk":
            assert kept.tolist() == expected.topk(16).indices.tolist()
        else:
            head = Head(expected.float()[:, None], torch.zeros(8000))
            offset = torch.from_numpy(offsets[row, slot : slot + 1])
            again = keep_threshold_sample(torch.ones(1, 1), BlockedHead(head, seen), 16, (1.0,), offset)
            assert len(set(kept.tolist()) & set(again.ids[0].tolist())) >= 15  # rounding may move one
        np.testing.assert_allclose(arrays["topk_logprob"][row, slot], expected[kept], rtol=1e-3, atol=1e-4)
        others = expected.index_fill(0, kept, -torch.inf)
        for index, temperature in enumerate(recipe.temperatures):
            for name, rest in (
                ("tail_logmass", others),
                ("tail_logmass_seen", others.masked_fill(~seen, -torch.inf)),
            ):
                reference = float((rest / temperature).logsumexp(0))
                assert float(arrays[name][row, slot, index]) == pytest.approx(reference, abs=1e-4), name


def test_signals_do_not_depend_on_the_other_rows(teacher: Teacher) -> None:
    """But for the last bits: a batch is as wide as its longest row."""
    recipe, tokens, seen = recipe_for("topk"), masked_batch(), seen_mask(SEEN, 8000)
    together = teacher_signals(teacher, recipe, tokens, seen)
    for row in range(len(LENGTHS)):
        alone = teacher_signals(teacher, recipe, {n: a[row : row + 1] for n, a in tokens.items()}, seen)
        np.testing.assert_array_equal(alone["topk_id"], together["topk_id"][row : row + 1])
        np.testing.assert_allclose(alone["topk_logprob"], together["topk_logprob"][row : row + 1], rtol=2e-3)
        np.testing.assert_allclose(alone["attention"], together["attention"][row : row + 1], rtol=0, atol=1e-3)


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
    monkeypatch.setattr(AttentionCapture, "maps", lambda _: torch.full((4, 2, 8, 8), float("nan")))
    with pytest.raises(CometError, match=r"^the teacher's attention is not finite; .* use --dtype float32$"):
        teacher_signals(teacher, recipe_for("topk"), masked_batch(), seen_mask(SEEN, 8000))
