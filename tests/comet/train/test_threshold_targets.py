"""What a stored sample says of the teacher: the weights of its tokens, and probabilities among those of the corpus."""

import math

import numpy as np
import torch

from cache_tools import Cache
from cache_tools.signals import UNUSED_POSITION
from comet.student.vocabulary import trimmed_vocabulary
from comet.train.dataset import CacheRows, collate, in_vocabulary, shards_of
from comet.train.signals import first_kept, teacher_targets


def test_drawn_tokens_stand_for_the_threshold_as_it_was(threshold_cache: Cache) -> None:
    """In float16 all would stand for 0.08 % less of the teacher's mass, and the KL be too low for it."""
    recipe = threshold_cache.recipe
    rows = CacheRows(shards_of([threshold_cache], "validation"), threshold_cache.extent.arrays)
    arrays = rows.__getitems__(list(range(len(rows))))
    found = collate(arrays, recipe)["sample_logweight"]
    stored = arrays["sample_logweight"][arrays["target_position"] != UNUSED_POSITION]
    is_threshold = torch.from_numpy(stored == np.float16(-math.log(recipe.top_k)))
    assert is_threshold.any() and not is_threshold.all()
    assert (found[is_threshold] == torch.tensor(-math.log(recipe.top_k))).all()
    assert (found[~is_threshold] == torch.from_numpy(stored).float()[~is_threshold]).all()


def test_every_token_that_was_not_drawn_is_known(threshold_cache: Cache) -> None:
    """Also where none was drawn: the least probable one is not taken for a drawn one."""
    vocabulary, recipe = trimmed_vocabulary([threshold_cache]), threshold_cache.recipe
    rows = CacheRows(shards_of([threshold_cache], "validation"), threshold_cache.extent.arrays)
    whole = collate(rows.__getitems__(list(range(len(rows)))), recipe)
    targets, at_one = teacher_targets(recipe), recipe.temperatures.index(1.0)
    for batch in (whole, in_vocabulary(whole, vocabulary, recipe)):
        weight = batch["sample_logweight"][:, at_one]  # [T, k]
        below = whole["sample_logweight"][:, at_one, :1] < -math.log(recipe.top_k)
        assert below.any(), "somewhere all but the best are drawn"
        drawn = below | (weight == -math.log(recipe.top_k))
        kept = weight > -torch.inf
        assert (kept.any(1) & ~(kept & drawn).any(1)).any(), "somewhere none was drawn"
        expected = (kept & ~drawn).scatter(1, first_kept(targets.kept_id(batch, 1.0)), True) & kept
        assert ((targets.teacher_logprob(batch) > -torch.inf) == expected).all()


def test_the_teacher_s_confidence_is_among_the_tokens_of_the_corpus(threshold_cache: Cache) -> None:
    """As are the student's, and both accuracies: else the teacher would seem less sure than it is right."""
    vocabulary, recipe = trimmed_vocabulary([threshold_cache]), threshold_cache.recipe
    rows = CacheRows(shards_of([threshold_cache], "validation"), threshold_cache.extent.arrays)
    whole = collate(rows.__getitems__(list(range(len(rows)))), recipe)
    batch = in_vocabulary(whole, vocabulary, recipe)
    every, kept = (b["sample_logweight"][:, recipe.temperatures.index(1.0)].exp() for b in (whole, batch))  # [T, k]
    found = teacher_targets(recipe).teacher_logprob(batch).exp()
    some = kept.sum(1) > 0
    mass = kept.sum(1) / every.sum(1)
    assert (mass[some] < 0.9).any(), "the teacher knows tokens that the corpus lacks"
    first = first_kept(teacher_targets(recipe).kept_id(batch, 1.0))
    expected = (kept.gather(1, first)[:, 0] / mass).clamp(max=1)
    np.testing.assert_allclose(found.gather(1, first)[some, 0], expected[some], rtol=1e-4)
    assert not found[~some].any()
