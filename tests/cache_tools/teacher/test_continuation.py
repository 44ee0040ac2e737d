"""Views that the teacher continues: what changes from one to the next, and that draws follow the teacher."""

from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import run
from helpers.settings import build_settings
from helpers.small_disk import small_disk

from cache_tools import Cache, build_cache, open_cache
from cache_tools.build.restore import rebuild_tokens
from cache_tools.cli.facts import describe, options_of_build
from cache_tools.errors import CometError
from cache_tools.settings import RerunSettings
from cache_tools.signals import TOKEN_ARRAYS, UNUSED_POSITION
from cache_tools.teacher.continuation import continued_rows, fill_targets
from cache_tools.teacher.model import load_teacher
from cache_tools.text.corpus import PackedRows
from cache_tools.text.masking import Masking, mask_rows, unmasked
from cache_tools.text.tokenizer import load_cache_tokenizer
from cache_tools.verify.verify import TokenStream, verify

VIEWS, CHAIN = 6, 3
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory, sample_teacher: Path, sample_text: Path) -> tuple[Cache, Cache]:
    """One whose views continue one another, and one of the same text whose views do not."""
    folder = tmp_path_factory.mktemp("continued")
    settings = build_settings(folder / "plain.zarr", sample_teacher, sample_text, views=VIEWS, rows_per_shard=1024)
    continued = build_cache(replace(settings, out=folder / "continued.zarr", continue_views=CHAIN))
    return continued, build_cache(settings)


def rows_of(cache: Cache, group: str = "train") -> dict[str, Any]:
    arrays = cache.read_shard(group, 0)
    return {name: np.asarray(arrays[name]) for name in TOKEN_ARRAYS}


def masking_of(cache: Cache) -> Masking:
    recipe = cache.recipe
    return Masking(recipe.mask_prob, recipe.seed, recipe.mask_id, recipe.special_ids, cache.vocabulary.id)


def by_view(array: np.ndarray) -> np.ndarray:
    return array.reshape(VIEWS, -1, *array.shape[1:])


def test_a_view_differs_from_the_one_before_at_its_targets_only(caches: tuple[Cache, Cache]) -> None:
    continued, plain = (rows_of(cache) for cache in caches)
    tokens, text = by_view(unmasked(continued)), by_view(unmasked(plain))
    position = by_view(continued["target_position"])
    for view in range(VIEWS):
        if view % CHAIN == 0:
            np.testing.assert_array_equal(tokens[view], text[view])
            continue
        row, column = np.nonzero(tokens[view] != tokens[view - 1])
        assert len(row) > 0
        assert all(column[i] in position[view - 1, row[i]] for i in range(len(row)))
        assert (tokens[view] != text[view]).mean() > (tokens[view - 1] != text[view - 1]).mean()


def test_the_teacher_may_fill_in_tokens_that_the_text_lacks(caches: tuple[Cache, Cache]) -> None:
    """They belong to the vocabulary, counted in the rows of all views."""
    continued, plain = caches
    ids, of_text = (set(cache.vocabulary.id.tolist()) for cache in caches)
    assert of_text < ids and len(ids) > 1.2 * len(of_text)
    rows, validation = rows_of(continued), rows_of(plain, "validation")
    tokens = unmasked(rows)[np.arange(rows["input_ids"].shape[1]) < rows["length"][:, None]]
    first = len(validation["length"]) // VIEWS
    inside = np.arange(rows["input_ids"].shape[1]) < validation["length"][:first, None]
    held_out = unmasked(validation)[:first][inside]
    ordinary, count = np.unique(np.concatenate([tokens, held_out]), return_counts=True)
    is_special = np.isin(ordinary, continued.recipe.special_ids)
    np.testing.assert_array_equal(ordinary[~is_special], continued.vocabulary.id)
    np.testing.assert_array_equal(count[~is_special], continued.vocabulary.count)


def test_validation_rows_are_of_the_text(caches: tuple[Cache, Cache]) -> None:
    continued, plain = (rows_of(cache, "validation") for cache in caches)
    np.testing.assert_array_equal(unmasked(continued), unmasked(plain))
    for name in ("length", "target_position", "row_key"):
        np.testing.assert_array_equal(continued[name], plain[name])


def test_it_is_sound_and_says_so(caches: tuple[Cache, Cache], sample_teacher: Path, tmp_path: Path) -> None:
    continued, plain = caches
    assert verify(continued.root, deep=True, again=RerunSettings(str(sample_teacher), device="cpu")).damage == []
    said = f"{VIEWS} views, in chains of {CHAIN} that the teacher continued"
    assert said in str(describe(continued)["rows"])
    assert run("push", continued.root, tmp_path / "there", "--i-may-share-this").exit_code == 0
    assert said in (tmp_path / "there" / "README.md").read_text(encoding="utf-8")
    assert "continued" not in str(describe(plain)["rows"])
    assert options_of_build(continued)["continue-views"] == CHAIN
    assert continued.recipe.recipe_id != plain.recipe.recipe_id


def test_on_one_machine_it_is_the_same_again(
    caches: tuple[Cache, Cache], sample_teacher: Path, sample_text: Path, tmp_path: Path
) -> None:
    changes = {"views": VIEWS, "rows_per_shard": 1024, "continue_views": CHAIN}
    again = build_cache(build_settings(tmp_path / "again.zarr", sample_teacher, sample_text, **changes))
    assert again.cache_id == caches[0].cache_id


def test_without_its_text_it_could_not_be_completed(caches: tuple[Cache, Cache], tmp_path: Path) -> None:
    continued, _ = caches
    refused = run("subset", continued.root, tmp_path / "part.zarr", "--detach-text")
    assert refused.exit_code == 2
    assert "--detach-text: its views continue one another (--continue-views)" in refused.stderr
    assert not (tmp_path / "part.zarr").exists()
    with pytest.raises(CometError, match="its text alone does not give its tokens; copy them again"):
        rebuild_tokens(continued, (), (), load_cache_tokenizer(continued), tmp_path)


def test_a_single_view_continues_none(sample_teacher: Path, sample_text: Path, tmp_path: Path) -> None:
    settings = build_settings(tmp_path / "kin.zarr", sample_teacher, sample_text, views=1, continue_views=CHAIN)
    with pytest.raises(
        CometError, match=r"--continue-views 3: a text of 1,\d{3} tokens has one view, .* give --views 2"
    ):
        build_cache(settings)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error(caches: tuple[Cache, Cache], sample_teacher: Path, tmp_path: Path) -> None:
    """Written through a map, the file would end the process without a word."""
    arrays = rows_of(caches[1])
    rows, ids = PackedRows(unmasked(arrays), arrays["length"]), caches[1].vocabulary.id
    with small_disk(tmp_path / "disk", 8), pytest.raises(OSError, match="No space left on device"):
        continued_rows(
            load_teacher(str(sample_teacher)), rows, masking_of(caches[1]), ids, 1, 1, CPU, tmp_path / "disk" / "rows"
        )


def test_rows_of_another_continuation_are_found(caches: tuple[Cache, Cache]) -> None:
    other = copy(caches[0])
    other.recipe = replace(other.recipe, continued_sha256="0" * 64)
    stream = TokenStream(other)
    for key in other.extent.keys():
        stream.add(key, other.read_shard(*key))
    assert list(stream.errors()) == [f"{other.root}: the continued rows are not those of the recipe"]


def test_draws_follow_the_teacher(sample_teacher: Path, caches: tuple[Cache, Cache]) -> None:
    """One row under 600 keys: the best token is drawn as often as the teacher gives it probability."""
    cache = open_cache(caches[1].root)
    rows, masking = rows_of(cache), masking_of(cache)
    tokens, length = unmasked(rows)[:1], rows["length"][:1]
    masked = mask_rows(tokens, length, 0, masking)
    copies = 600
    many = {name: np.repeat(getattr(masked, name), copies, 0) for name in TOKEN_ARRAYS if name != "row_key"}
    keys = np.arange(copies, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    teacher = load_teacher(str(sample_teacher))
    with torch.no_grad():
        many_tokens, rows = np.repeat(tokens, copies, 0), type(masked)(**many, row_key=keys)
        drawn = fill_targets(teacher, many_tokens, rows, masking.seen, CPU)
        mask = torch.ones((1, int(length[0])), dtype=torch.bool)
        ids = torch.from_numpy(masked.input_ids[:, : int(length[0])].astype(np.int64))
        logits = teacher.head.logits(teacher.transform(teacher.hidden_states(ids, mask, None)[0]))
    seen = torch.from_numpy(masking.seen.astype(np.int64))
    for position in masked.target_position[0][masked.target_position[0] != UNUSED_POSITION]:
        probability, best = logits[int(position)][seen].softmax(0).max(0)
        found = (drawn[:, position] == int(seen[best])).mean()
        spread = (float(probability) * (1 - float(probability)) / copies) ** 0.5
        assert abs(found - float(probability)) < 5 * spread + 1e-9, position
